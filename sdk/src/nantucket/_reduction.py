"""The all-reduce of ``DistributedDataParallel`` with two looks at it: the gradients before, and how long a rank waits.

A communication hook is the only place where gradients that lie in DDP's buckets can be seen before they are reduced. It
takes the place of DDP's own all-reduce, so it is registered only where the job allows it (``comm_hook=True``) and has
none of its own. The sum and its division are those of PyTorch's ``allreduce_hook``.
"""

from __future__ import annotations

from typing import Any, Callable

from nantucket import _clock


class Wait:
    """One collective: from when this rank's part was ready until the sum was there."""

    def __init__(self, torch: Any, tensor: Any) -> None:
        self._torch = torch
        self._on_gpu = tensor.device.type == "cuda"
        self.begin = self._mark()
        self.end: Any = None

    def over(self) -> None:
        """The sum is there, or its kernels are queued on the current stream."""
        self.end = self._mark()

    @property
    def ready(self) -> bool:
        """Whether both ends are known. It does not wait."""
        return self.end is not None and (not self._on_gpu or bool(self.end.query()))

    def seconds_since(self, earlier: Wait | None) -> float:
        """How long it took, of which nothing is counted that ``earlier`` still took: buckets stand in one queue."""
        alone = self._between(self.begin, self.end)
        return alone if earlier is None else max(0.0, min(alone, self._between(earlier.end, self.end)))

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3 if self._on_gpu else float(end - begin)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return _clock.monotonic()
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds_waited(waits: list[Wait]) -> float:
    """Seconds of a step in which this rank had given its part and had no sum yet."""
    return sum(wait.seconds_since(waits[at - 1] if at else None) for at, wait in enumerate(waits))


def hook_reduction(torch: Any, model: Any, look: Callable[[Any], None], waited: Callable[[Wait], None]) -> bool:
    """Have DDP ask ``look(bucket)`` before each all-reduce. False where ``model`` takes no hook."""
    if not hasattr(model, "register_comm_hook") or not hasattr(model, "gradient_as_bucket_view"):
        return False
    distributed = torch.distributed
    group = model.process_group

    def reduce(_state: object, bucket: Any) -> Any:
        look(bucket)
        total = bucket.buffer()
        wait = Wait(torch, total)
        waited(wait)
        total.div_(distributed.get_world_size(group))
        work = distributed.all_reduce(total, group=group, async_op=True)

        def over(future: Any) -> Any:
            wait.over()
            return future.value()[0]

        return work.get_future().then(over)

    reduce.__annotations__.clear()  # DDP takes its own types there, or none
    try:
        model.register_comm_hook(None, reduce)
    except RuntimeError:  # the job has one of its own
        return False
    return True
