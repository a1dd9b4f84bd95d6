"""Collectors: what runs on a GPU node and reads it.

Nothing is imported here on purpose: the process that talks to the driver is started as ``python -m
collectors.nvml.child`` and imports this package, and must not carry what the rest needs (pyarrow alone is some 53 MiB).
Entrances: :mod:`collectors.agent` (the loop of a node), :mod:`collectors.registry` (the sources by name),
:mod:`collectors.source` (their protocol), :mod:`collectors.simulated`, :mod:`collectors.errors`.
"""
