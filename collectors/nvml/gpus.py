"""The GPUs of the process that talks to the driver: who each is, what is due of it, and what it answers."""

import time
from typing import Any

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device, Driver, DriverFault
from collectors.nvml.sampling import GpuReader, Sample, lost_sample


class Gpu:
    """One GPU. What was never learned of it (its uuid, its name) is ``None``."""

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver, self.index = driver, index
        self.device: Device | None = None
        self._reader: GpuReader | None = None
        self.uuid: str | None = None
        self.about: dict[str, str | None] = {}
        self.unknown: str | None = None
        self._find()

    def known(self) -> dict[str, Any]:
        """What an inventory says of it."""
        return {"gpu": self.index, "uuid": self.uuid, **self.about, "unknown": self.unknown}

    def read(self, due: frozenset[CostClass], profile: bool, fast: frozenset[str] | None) -> list[dict[str, Any]]:
        """What is due of it and of its MIG instances, as it goes over the pipe. May hang; never raises."""
        device = self._find()
        if device is not None and self._reader is None:
            self._reader = GpuReader(device)
        parts = [lost_sample()]
        if self._reader is not None:
            parts = self._reader.read(time.monotonic(), due, profile, fast)
        lost = parts[0].lost
        if lost:
            # A handle from before a reset does not come back to life.
            self.device = None
            self.close()
        return [
            {"gpu": self.index, "instance": part.instance, "uuid": part.uuid or self.uuid, "lost": lost} | _plain(part)
            for part in parts
        ]

    def close(self) -> None:
        """Give back what it holds of the driver."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _find(self) -> Device | None:
        """Its handle, ``None`` if it has none now. What could not be learned of it is asked again the next time."""
        try:
            if self.device is None:
                self.device = self._driver.device(self.index)
            self.uuid = self.device.uuid() if self.uuid is None else self.uuid
            self.about = self.about or self.device.about()
        except DriverFault as fault:
            # Named in the reading: its fields fail with the same reason, or it has a row without a uuid.
            self.unknown = str(fault)
        return self.device


def _plain(made: Sample) -> dict[str, Any]:
    plain: dict[str, Any] = {"values": made.values, "failures": made.failures}
    if made.pids is not None:
        plain["pids"] = made.pids
    if made.links:
        plain["links"] = [[link.port, link.values] for link in made.links]
    return plain
