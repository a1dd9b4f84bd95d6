"""Where the ranks of a job stand when it stalls: the stacks that came, grouped by what they wait for.

One rank that stands elsewhere than all others is the one that they wait for. Where there is no such one, none is named.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

RANKS_MAX = 65_536
"""Ranks of a job whose place is kept, some 200 bytes each; of a larger job the first ones."""
COLLECTIVES = re.compile(
    r"(all_reduce|all_gather|all_gather_into_tensor|all_gather_object|reduce_scatter\w*|reduce|broadcast\w*|barrier|"
    r"monitored_barrier|all_to_all\w*|gather|scatter|send|recv|batch_isend_irecv|psum|pmean)$"
)
LOADERS = re.compile(r"(_next_data|_try_get_data|next_batch|get_batch|load_batch|next_microbatch|__next__)$")
WAITS = re.compile(r"(backward|_engine_run_backward|synchronize|item|cpu|wait|_wait_for_work)$")
_KINDS = (
    (COLLECTIVES, "in {}", True),
    (LOADERS, "in the data loader ({})", False),
    (WAITS, "in {}", True),
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a stack says in a few words."""

    words: str
    waits: bool
    """For another rank or for the GPU."""


def place_of(frames: Sequence[str]) -> Place:
    """Where a thread stands: the innermost collective or data loader of its frames, else its innermost frame."""
    functions = [frame.partition(" (")[0] for frame in frames]
    for pattern, words, waits in _KINDS:
        for function in functions:
            if pattern.match(function):
                return Place(words.format(function), waits)
    return Place(f"in {functions[0]}", waits=False)


@dataclass(slots=True)
class JobStacks:
    """The newest place of each rank of one job, since its last step."""

    places: dict[int, Place] = field(default_factory=dict)
    frames: dict[int, list[str]] = field(default_factory=dict)
    gone: dict[int, str] = field(default_factory=dict)
    """Ranks whose processes ended without a goodbye, with their nodes."""
    fresh: bool = False
    """Whether something came since it was last told."""
    told: float = 0.0
    """When the stall was last said (event time); 0 if never."""

    def note(self, rank: int, detail: str) -> None:
        """A ``stack`` event of ``rank``. What holds no frames says nothing."""
        frames = _frames(detail)
        if frames and (rank in self.places or len(self.places) < RANKS_MAX):
            self.places[rank], self.frames[rank] = place_of(frames), frames
            self.fresh = True

    def ended(self, rank: int, node: str) -> None:
        """The process of ``rank`` is gone."""
        if len(self.gone) < RANKS_MAX:
            self.gone[rank] = node
            self.fresh = True

    def odd(self) -> int | None:
        """The one rank that the others wait for; ``None`` where it cannot be told.

        It is the only one that does not wait for another; or all wait, and it alone stands elsewhere.
        """
        busy = [rank for rank, place in self.places.items() if not place.waits]
        if len(busy) == 1 and len(self.places) > 1:
            return busy[0]
        groups = self.groups()
        if busy or len(groups) != 2 or len(groups[0][1]) < 2 or len(groups[1][1]) != 1:
            return None
        return groups[1][1][0]

    def groups(self) -> list[tuple[str, list[int]]]:
        """Ranks by where they stand, the most first."""
        found: dict[str, list[int]] = {}
        for rank in sorted(self.places):
            found.setdefault(self.places[rank].words, []).append(rank)
        return sorted(found.items(), key=lambda item: -len(item[1]))

    def said(self) -> str:
        """In words, the ranks that wait first: ``1,023 ranks are in all_reduce, rank 517 is in the data loader``."""
        parts = [
            f"rank {ranks[0]} is {words}" if len(ranks) == 1 else f"{len(ranks):,} ranks are {words}"
            for words, ranks in self.groups()[:4]
        ]
        if self.gone:
            ranks = sorted(self.gone)
            parts.append(f"rank {ranks[0]} is gone" if len(ranks) == 1 else f"{len(ranks):,} ranks are gone")
        return ", ".join(parts)

    def evidence(self) -> dict[str, Any]:
        """For the finding: how many stand where, and the stack of the one that stands apart."""
        evidence: dict[str, Any] = {}
        if self.places:
            evidence["ranks_at"] = {words: len(ranks) for words, ranks in self.groups()[:8]}
        odd = self.odd()
        if odd is not None:
            evidence["stack"] = self.frames[odd][:16]
        if self.gone:
            evidence["ranks_gone"] = sorted(self.gone)[:8]
        return evidence


def _frames(detail: str) -> list[str]:
    try:
        frames = json.loads(detail)["frames"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [frame for frame in frames if isinstance(frame, str)] if isinstance(frames, list) else []
