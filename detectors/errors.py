"""What can go wrong in the detectors.

::

    DetectorError
    ├── UnknownDetector         a detector's name that is not in the table
    └── WrongSetting            a detector's setting outside what it may be

What arrives in frames never raises: it has been validated, and a detector has an answer for every value in it.
"""


class DetectorError(Exception):
    """Anything that a detector refuses."""


class UnknownDetector(DetectorError):
    """A detector was asked for that does not exist."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"there is no detector {name!r}: expected one of {', '.join(known)}.")
        self.name = name


class WrongSetting(DetectorError):
    """A detector was configured with a value it cannot work with."""

    def __init__(self, detector: str, setting: str, found: object, expected: str) -> None:
        super().__init__(f"detector {detector}: {setting} is {found!r}, expected {expected}.")
        self.detector, self.setting = detector, setting
