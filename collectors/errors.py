"""What can go wrong in a collector.

::

    CollectorError
    ├── SourceUnavailable       a source cannot be opened; the message says what to do
    │   ├── DriverNotFound      no NVML library on this machine
    │   └── DriverRefused       the library is there and does not start
    ├── SourceClosed            read before it was opened or after it was closed
    ├── UnknownSource           a source name that is not in the registry
    └── InvalidSimulation       a simulated fleet that cannot be
        └── InvalidFault        a fault that means nothing
"""


class CollectorError(Exception):
    """Anything that a collector refuses or cannot do."""

    retryable = False


class SourceUnavailable(CollectorError):
    """A source cannot be opened just now, or not on this machine."""


class DriverNotFound(SourceUnavailable):
    """There is no NVML library: this machine has no NVIDIA driver, or it is not visible here."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"no NVIDIA driver: expected libnvidia-ml.so.1 on the loader's path, found {found}. Install the driver, or "
            "in a container give it the driver's libraries (--gpus all with the NVIDIA container toolkit), or use "
            "--simulate N."
        )


class DriverRefused(SourceUnavailable):
    """The NVML library is there and cannot be used."""

    retryable = True

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the NVIDIA driver cannot be used: expected NVML to start, found {found}. See whether nvidia-smi works; "
            "after an update of the driver without a reboot, reboot or reload the kernel module."
        )


class SourceClosed(CollectorError):
    """A source was read before it was opened or after it was closed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cannot read the source {name}: it is not open; use it inside 'async with'.")


class UnknownSource(CollectorError):
    """A source name that is not in the registry."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"there is no source {name!r}: expected one of {', '.join(known)}.")


class InvalidSimulation(CollectorError, ValueError):
    """A simulated fleet that cannot be."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        super().__init__(f"a simulated fleet with {key} = {found!r} cannot be: expected {expected}.")


class InvalidFault(InvalidSimulation):
    """A fault that means nothing."""

    def __init__(self, fault: object, key: str, expected: str) -> None:
        super().__init__(f"{key} of the fault {fault!r}", getattr(fault, key), expected)
