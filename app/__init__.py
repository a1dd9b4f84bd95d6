"""The command line, the configuration, and the wiring of roles. The only place that knows every role."""
