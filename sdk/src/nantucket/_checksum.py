"""A number that is the same on every replica whose parameters are the same to the bit, and hardly on any other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nantucket._gradients import local
from nantucket._readback import Readback

EXACT_BITS = 52
"""A metric's value is a float64: whole numbers of so many bits are exact in it."""
_STRIDE = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: the weights of tensors that follow each other share no bits (Knuth, 6.4)."""
_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


def checksum(torch: Any, tensors: Iterable[Any]) -> Readback:
    """Of ``tensors`` in their order: the sum of their elements' bits, each tensor with a weight of its own.

    It reads every element once, on its device, and waits for nothing. One changed bit changes it.
    """
    total = None
    with torch.no_grad():
        for place, tensor in enumerate(tensors):
            flat = local(tensor.detach()).contiguous().view(-1)
            bits = flat.view(getattr(torch, _INTEGERS[flat.element_size()]))
            weight = (_STRIDE * (2 * place + 1)) % (1 << 62) | 1
            part = bits.sum(dtype=torch.int64) * weight
            total = part if total is None else total + part.to(total.device, non_blocking=True)
        if total is None:
            total = torch.zeros((), dtype=torch.int64)
        return Readback(torch, (total ^ (total >> 31)) & ((1 << EXACT_BITS) - 1))
