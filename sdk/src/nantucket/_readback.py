"""Numbers on their way from a device: copied into pinned memory behind the work that makes them, and read later.

The training thread queues a copy and an event and goes on; it never waits for the device. The sender's thread asks the
event, which takes under a microsecond, and reads the numbers once it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nantucket._values import Rows, rows_of


class Readback:
    """A tensor's values, later. ``tensor`` is of any device and shape; on the CPU its values are there at once.

    On CUDA and ROCm nothing waits. Another kind of device has no such copy here: there the values are fetched now,
    which waits for that device.
    """

    def __init__(self, torch: Any, tensor: Any) -> None:
        tensor = tensor.detach()
        self._event: Any = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.to("cpu", copy=True)

    @property
    def ready(self) -> bool:
        """Whether :attr:`values` are there. It does not wait."""
        return self._event is None or bool(self._event.query())

    @property
    def values(self) -> Any:
        """The values as a tensor on the CPU; meaningless before :attr:`ready`."""
        return self._host


def is_on_device(value: object) -> bool:
    """Whether ``value`` is one number on a GPU, which ``.item()`` would wait for."""
    return bool(getattr(value, "is_cuda", False)) and getattr(value, "ndim", None) == 0


class LaterCall:
    """A call of ``run.log`` some of whose values are :class:`Readback`: it becomes rows when they are there."""

    def __init__(self, now: float, step: object, values: Mapping[str, object]) -> None:
        self._now, self._step, self._values = now, step, values
        self._waiting = [value for value in values.values() if isinstance(value, Readback)]

    @property
    def ready(self) -> bool:
        """Whether all of its values are on the host. It does not wait."""
        return all(value.ready for value in self._waiting)

    def rows(self) -> Rows:
        """Its rows, once it is :attr:`ready`."""
        values = {
            name: value.values.item() if isinstance(value, Readback) else value for name, value in self._values.items()
        }
        return rows_of(self._now, self._step, values)
