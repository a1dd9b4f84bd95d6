"""What every role stands on: the clock, the life of a service, the log."""
