"""Reads one GPU after the other in a thread, and goes on without the one whose call does not return.

A call into the driver can block for ever, and nothing can end it. So the thread that is in it is left behind, with its
GPU, and another reads the rest. When the call returns after all, the GPU is read again.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

PATIENCE_SECONDS = 0.4
"""A GPU takes a millisecond, and some ten where the driver is busy. Whoever hangs longer than this (at most twice it,
for it is looked at that often) is left behind, and the others' rows still come within their second."""
PATIENCE_AFTER_SECONDS = 0.1
"""After one has hung, the others of that reading have as long: a driver that hangs as a whole hangs for each of them,
and eight GPUs are through in 2.2 s."""

Gpu = TypeVar("Gpu")
Answer = TypeVar("Answer")


class _Round(Generic[Gpu, Answer]):
    """One reading of the GPUs that are not stuck."""

    def __init__(self, gpus: Sequence[Gpu], read: Callable[[Gpu], Answer]) -> None:
        self.left = deque(gpus)
        self.read = read
        self.answers: list[tuple[Gpu, Answer]] = []
        self.done = threading.Event()


class _Worker(Generic[Gpu, Answer]):
    """A thread that works off rounds until it is left behind."""

    def __init__(self, lock: threading.Lock, freed: Callable[[Gpu], None]) -> None:
        self.reads = 0
        self.current: Gpu | None = None
        self.left_behind = False
        self._lock, self._freed = lock, freed
        self._rounds: deque[_Round[Gpu, Answer]] = deque()
        self._wake = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True, name="driver").start()

    def give(self, work: _Round[Gpu, Answer]) -> None:
        """Work off ``work``."""
        self._rounds.append(work)
        self._wake.release()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            work = self._rounds.popleft()
            while work.left:
                self.current = work.left.popleft()
                answer = work.read(self.current)
                with self._lock:
                    if self.left_behind:
                        self._freed(self.current)
                        return
                    self.reads += 1
                    work.answers.append((self.current, answer))
                    self.current = None
            work.done.set()


class Patient(Generic[Gpu, Answer]):
    """Reads GPUs for one caller. ``read`` may hang in any of them and must not raise."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = list(gpus)
        self._lock = threading.Lock()
        self._stuck: list[Gpu] = []
        self._worker: _Worker[Gpu, Answer] = _Worker(self._lock, self._free)

    @property
    def stuck(self) -> list[Gpu]:
        """The GPUs whose calls have not returned. There is a thread for each, and never more than one."""
        with self._lock:
            return list(self._stuck)

    def read(self, read: Callable[[Gpu], Answer]) -> list[tuple[Gpu, Answer]]:
        """What each GPU answers, without those that are stuck or hang now."""
        stuck = self.stuck
        work = _Round([gpu for gpu in self._gpus if gpu not in stuck], read)
        self._worker.give(work)
        patience, seen = PATIENCE_SECONDS, -1
        while not work.done.wait(patience):
            with self._lock:
                worker = self._worker
                if worker.reads != seen or worker.current is None:
                    seen = worker.reads
                    continue
                worker.left_behind = True
                self._stuck.append(worker.current)
                self._worker = _Worker(self._lock, self._free)
            patience, seen = PATIENCE_AFTER_SECONDS, -1
            self._worker.give(work)
        return work.answers

    def _free(self, gpu: Gpu) -> None:
        self._stuck.remove(gpu)
