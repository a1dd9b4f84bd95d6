"""What `make` runs on a developer's machine: services for the tests, generated documentation."""
