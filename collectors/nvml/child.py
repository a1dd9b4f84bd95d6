"""The process that talks to the driver: ``python -m collectors.nvml.child [METRIC ...]``.

It is killed when the driver hangs as a whole, so it holds nothing that matters. It imports neither pyarrow nor numpy.
On its standard output it writes JSON lines: one when it has started (or why it has not), one for each line on its
standard input, and one for each XID, whenever it comes. A line on its input is the request's number, its time in UTC
seconds, and 1 or 0 for whether profiling may be read. The arguments are the metrics that are read at every request; the
others are read once a second or more rarely. It ends with its standard input, and dies with its parent.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from collectors.cost_class import CostClass, Schedule
from collectors.errors import FieldFailure
from collectors.nvml.driver import Device, Driver, DriverFault
from collectors.nvml.driver_events import EventSet
from collectors.nvml.gpus import Gpu
from collectors.nvml.patience import Patient

_PR_SET_PDEATHSIG = 1
EXIT_NO_DRIVER = 3
EXIT_DRIVER_GONE = 4
_writing = threading.Lock()
Answer = list[dict[str, Any]]


class Reader:
    """Answers the requests."""

    def __init__(self, driver: Driver, gpus: Sequence[Gpu], fast: frozenset[str]) -> None:
        self._driver, self._gpus = driver, gpus
        self._fast = fast or None
        self._schedule = Schedule()
        self._patient: Patient[Gpu, Answer] = Patient(gpus)
        self.gone: str | None = None
        """Why this process is of no more use: the driver was unloaded, or loaded again under it."""

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one line."""
        request, now, profile = line.split()
        due = self._schedule.due(float(now))
        if self._fast is None:
            due |= {CostClass.SECOND}
        answers = self._patient.read(lambda gpu: gpu.read(due, profile == "1", self._fast))
        said: dict[str, Any] = {"request": int(request), "gpus": [part for _, parts in answers for part in parts]}
        if stuck := self._patient.stuck:
            said["hung"] = [gpu.index for gpu in stuck]
        elif CostClass.RARE in due or _is_in_trouble(said["gpus"]):
            self._look_for_others(said)
        return said

    def _look_for_others(self, said: dict[str, Any]) -> None:
        """Whether there are other GPUs than before, or no driver at all."""
        try:
            said["count"] = self._driver.count()
        except DriverFault as fault:
            if fault.needs_restart:
                self.gone = str(fault)


def _is_in_trouble(parts: Answer) -> bool:
    return any(FieldFailure.DRIVER_ERROR in part["failures"].values() for part in parts)


def main(arguments: Sequence[str]) -> int:
    """Serve until standard input ends."""
    _die_with_parent()
    driver = Driver()
    try:
        driver.open()
        versions = driver.versions()
        gpus = [Gpu(driver, index) for index in range(driver.count())]
    except DriverFault as fault:
        _write({"ready": False, "library_missing": fault.library_missing, "message": str(fault)})
        return EXIT_NO_DRIVER
    _write({"ready": True, **versions, "gpus": [gpu.known() for gpu in gpus]})
    threading.Thread(target=_hear_xids, args=[gpus], daemon=True, name="xids").start()
    reader = Reader(driver, gpus, frozenset(arguments))
    for line in sys.stdin:
        answer = reader.answer(line)
        if reader.gone is not None:
            _write({"gone": reader.gone})
            return EXIT_DRIVER_GONE
        _write(answer)
    return 0


def _hear_xids(gpus: Sequence[Gpu]) -> None:
    """Pass on what the driver tells, until it refuses to: then XIDs come from the kernel's log alone."""
    heard: dict[int, Device] = {}
    try:
        events = EventSet()
        while True:
            _register(events, gpus, heard)
            if (found := events.wait()) is not None:
                _write({"xid": found.code, "pci": found.device.pci(), "uuid": found.device.uuid()})
    except DriverFault as fault:
        _write({"xids": str(fault)})


def _register(events: EventSet, gpus: Sequence[Gpu], heard: dict[int, Device]) -> None:
    """Hear of every GPU by the handle that it has now: after a reset it has another one."""
    for gpu in gpus:
        device = gpu.device
        if device is None or heard.get(gpu.index) is device:
            continue
        heard[gpu.index] = device
        try:
            events.register(device)
        except DriverFault as fault:
            _write({"xids": f"GPU {gpu.index} tells none: {fault}"})


def _write(message: dict[str, Any]) -> None:
    with _writing:
        sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def _die_with_parent() -> None:
    """A child that hangs in the driver does not see its input end: the kernel ends it when the collector is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Without the clearing up of an interpreter, which would wait for a thread that hangs in the driver.
    os._exit(status)
