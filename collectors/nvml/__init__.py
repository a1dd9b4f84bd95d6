"""NVML: the driver's own library, read in a process of its own because a call into it can hang for ever.

``driver``, with ``driver_fields`` and ``driver_gpm``, is the only importer of pynvml. ``profiling``, ``activity``,
``thermal``, ``power``, ``clocks``, ``pcie``, ``memory_health`` and ``nvlink`` say what is read, one group of signals
each; ``plan`` puts together what is due. ``sampling`` reads it from one GPU, with ``field_reader``, ``gpm``, ``rates``,
``link_reader`` and ``instances``, one kind of reading each. ``child`` is the process; ``process`` and ``source`` are
the collector's end of the pipe. Nothing is imported here: the child stays small.
"""
