"""What jobs write: a module a format. Bytes or lines in, steps out; no I/O, nothing raised for what somebody wrote."""
