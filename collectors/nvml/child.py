"""The process that talks to the driver: ``python -m collectors.nvml.child``.

It is killed when a call hangs, so it holds nothing that matters. It imports neither pyarrow nor numpy. On its standard
output it writes one JSON line when it has started (or why it has not), and then one for each line on its standard
input, which is the request's number and its time in UTC seconds. It ends with its standard input, and dies with its
parent.
"""

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

from collectors.cost_class import CostClass, Schedule
from collectors.nvml.driver import Device, Driver, DriverFault
from collectors.nvml.sampling import GpuReader, Sample, lost_sample

_PR_SET_PDEATHSIG = 1
EXIT_NO_DRIVER = 3


class Gpu:
    """One GPU of the child. What was never learned of it (its uuid, its name) is ``None``."""

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver, self.index = driver, index
        self._device: Device | None = None
        self._reader: GpuReader | None = None
        self.uuid: str | None = None
        self.name: str | None = None
        self.unknown: str | None = None
        self._find()

    def read(self, due: frozenset[CostClass]) -> list[dict[str, Any]]:
        """What is due of it and of its MIG instances, as it goes over the pipe."""
        device = self._find()
        if device is not None and self._reader is None:
            self._reader = GpuReader(device)
        parts = [lost_sample()] if self._reader is None else self._reader.read(time.monotonic(), due)
        lost = parts[0].lost
        if lost:
            # A handle from before a reset does not come back to life.
            self._device = None
            self._close()
        return [
            {"gpu": self.index, "instance": part.instance, "uuid": part.uuid or self.uuid, "lost": lost} | _plain(part)
            for part in parts
        ]

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _find(self) -> Device | None:
        """Its handle, ``None`` if it has none now. What could not be learned of it is asked again the next time."""
        try:
            if self._device is None:
                self._device = self._driver.device(self.index)
            self.uuid = self._device.uuid() if self.uuid is None else self.uuid
            self.name = self._device.name() if self.name is None else self.name
        except DriverFault as fault:
            # Named in the reading: its fields fail with the same reason, or it has a row without a uuid.
            self.unknown = str(fault)
        return self._device


def main() -> int:
    """Serve until standard input ends."""
    _die_with_parent()
    driver = Driver()
    try:
        driver.open()
        version = driver.version()
        gpus = [Gpu(driver, index) for index in range(driver.count())]
    except DriverFault as fault:
        _write({"ready": False, "library_missing": fault.library_missing, "message": str(fault)})
        return EXIT_NO_DRIVER
    known = [{"gpu": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "unknown": gpu.unknown} for gpu in gpus]
    _write({"ready": True, "driver_version": version, "gpus": known})
    schedule = Schedule()
    for line in sys.stdin:
        request, now = line.split()
        due = schedule.due(float(now))
        _write({"request": int(request), "gpus": [part for gpu in gpus for part in gpu.read(due)]})
    driver.close()
    return 0


def _plain(made: Sample) -> dict[str, Any]:
    pids = {} if made.pids is None else {"pids": made.pids}
    return {"values": made.values, "failures": made.failures, **pids}


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _die_with_parent() -> None:
    """A child that hangs in the driver does not see its input end: the kernel ends it when the collector is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
