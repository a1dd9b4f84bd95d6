"""File descriptors: a thousand walls are a thousand sockets, and many systems give a process 1,024 unless it asks."""

import resource


def raise_limit() -> int:
    """Raise this process's soft limit to its hard one; how many descriptors it may have now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
