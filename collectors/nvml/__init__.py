"""NVML: the driver's own library, read in a process of its own because a call into it can hang for ever.

``driver`` is the only importer of pynvml; ``activity``, ``thermal``, ``power``, ``clocks``, ``pcie`` and
``memory_health`` say what is read, one group of signals each; ``sampling`` reads them all from one GPU; ``child`` is
the process; ``process`` and ``source`` are the collector's end of the pipe. Nothing is imported here: the child stays
small.
"""
