"""A small NVIDIA driver library in C for machines without a GPU: the tests and ``bench collect`` load it."""
