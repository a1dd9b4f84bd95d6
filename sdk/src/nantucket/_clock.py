"""The one place where the SDK fetches time."""

import time

now = time.time
"""Wall clock, UTC seconds since 1970."""
monotonic = time.monotonic
"""Seconds from an arbitrary start, for durations and deadlines."""
