"""``nantucket.init`` and the run that it returns: what a training loop sees."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Callable, TypeVar

from nantucket import _clock
from nantucket._checksum import checksum
from nantucket._connection import default_url
from nantucket._coordinates import coordinates_of
from nantucket._heed import Agree, Heed, Wish, make_heed
from nantucket._identity import identify
from nantucket._life import Life
from nantucket._pulse import STACK_SECONDS, Pulse
from nantucket._readback import LaterCall, Readback, is_on_device
from nantucket._say import Voice
from nantucket._secret import Secret, from_environment
from nantucket._sender import COUNTED, Later, Sender
from nantucket._values import PLAIN_TYPES, plain
from nantucket._verdict import Verdict
from nantucket._version import __version__
from nantucket._watch import Options, Watch

FINISH_SECONDS = 5.0
"""How long the end of a job waits for a collector that is there: a restart of it takes about a second."""
FINISH_GRACE_SECONDS = 1.5
"""How long it waits for one that is not: one pause between two attempts, and one attempt."""
TOKEN_CHARACTERS_MAX = 512
STACK_SECONDS_MAX = 1e6
"""Eleven days; faulthandler's timer takes no number of any size."""
T = TypeVar("T")

_runs: weakref.WeakSet[Run] = weakref.WeakSet()


class Run:
    """One process of a training job. Made by :func:`init`; usable in ``with``.

    No method raises for what it is given or for what the collector does, and none but :meth:`finish` waits.
    """

    def __init__(self, sender: Sender | None, attempt: str, voice: Voice) -> None:
        self.attempt = attempt
        """Names this start of the job; a restart is a new attempt."""
        self._sender = sender
        self._voice = voice
        self._open = sender is not None
        self._forked = False
        self._not_taken = 0
        self._heed: Heed | None = None
        self._watch: Watch | None = None
        self._life: Life | None = None

    def __repr__(self) -> str:
        if self._sender is None:
            return "<nantucket.Run, not reporting>"
        identity = self._sender.identity
        return f"<nantucket.Run {identity.job}/{identity.attempt}/{identity.rank}>"

    def log(self, /, *mappings: Mapping[str, object], step: object = None, **values: object) -> None:
        """Report a step. It appends to a queue and returns; it never raises, blocks or waits for the collector.

        Columns: ``loss, grad_norm, update_norm, loss_scale, lr, step_seconds, data_seconds, wait_seconds`` (numbers),
        ``nonfinite`` (gradient elements that are not finite), ``watched_elements`` and ``total_elements`` (how many
        were looked at, of how many), ``tokens, microbatch`` (whole numbers), ``first_nonfinite`` (the first parameter
        with a non-finite gradient), ``skipped`` (the optimizer did not step), ``phase``, and ``scope``: whose numbers
        these are, ``"microbatch"``, ``"shard"`` (before any reduction) or ``"global"`` (after it). Every other name
        with a number is a metric of that name. Names that are no Python names come in a mapping:
        ``run.log({"reward/mean": 0.3}, step=5)``.

        ``None`` is absent, 0.0 is zero and NaN is NaN. A value that cannot be used is counted, said once, and left out.
        A PyTorch tensor on a GPU is copied behind the work that makes it; nothing waits for the GPU. Another library's
        device number is fetched by ``.item()``, which waits: hand over numbers of the host.
        """
        try:
            now = _clock.now()
            for mapping in mappings:
                values = {**mapping, **values}
            later = False
            for name, value in values.items():
                if type(value) not in PLAIN_TYPES:
                    kept = values[name] = _kept(value)
                    later = later or type(kept) is Readback
            if type(step) not in PLAIN_TYPES:
                step = plain(step)
            if self._open and self._sender is not None:
                life = self._life
                if life is not None:
                    life.heard = _clock.monotonic()
                    if life.phase is not None or life.data_seconds is not None:
                        life.mark(values)
                if self._watch is None or not self._watch.claim(now, step, values):
                    self._sender.put(LaterCall(now, step, values) if later else (now, step, values))
            else:
                self._closed()
        except Exception as error:  # noqa: BLE001  a wrong argument must never break a training step
            self._not_taken += 1
            self._voice.once(
                "log", "a call of run.log could not be used (%s); said once, counted", type(error).__name__
            )

    def checksum(self, step: int, parameters: Iterable[object], name: str = "parameters") -> None:
        """Send a number that replicas share as long as their ``parameters`` are the same to the bit.

        As the metric ``checksum/NAME`` of this rank. A replica that leaves the others has been corrupted: memory,
        link, or arithmetic. It reads every parameter once: call it every few hundred steps, on every rank. For
        PyTorch; nothing waits for the GPU.
        """
        try:
            value = checksum(sys.modules["torch"], parameters)
            self._hand_over(LaterCall(_clock.now(), step, {f"checksum/{name}": value}))
        except Exception as error:  # noqa: BLE001  what cannot be summed is still trained
            self._voice.once("checksum", "the parameters have no checksum: %s: %s", type(error).__name__, error)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """The block is no step: ``"checkpoint"``, ``"eval"``, ``"compile"`` or any other name. Rows in it carry it.

        Detectors wait longer in ``checkpoint, eval, evaluation, validation, save`` and ``compile``. The time of the
        block is in no ``step_seconds``.
        """
        text = str(name)[:64]
        return nullcontext() if self._life is None or not text else self._life.in_phase(text)

    def loading(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches`` as they are; the time for which each is waited for becomes the row's ``data_seconds``."""
        return iter(batches) if self._life is None else self._life.loading(batches)

    def checkpoint(self, step: int, path: object = None) -> None:
        """A checkpoint of ``step`` is complete, at ``path``. A page names the last good one."""
        self._event("checkpoint_end", step, {} if path is None else {"path": str(path)[:1024]})

    def note(self, text: str) -> None:
        """Announce a change (``"data mix changed"``): whoever sees the curve bend finds it beside."""
        self._event("announced_change", None, {}, str(text))

    def _event(self, kind: str, step: object, detail: dict[str, Any], message: str = "") -> None:
        try:
            number = plain(step)
            if self._open and self._sender is not None:
                self._sender.announce(kind, detail, number if type(number) is int else None, message)
            else:
                self._closed()
        except Exception as error:  # noqa: BLE001  a wrong argument must never break a training step
            self._not_taken += 1
            self._voice.once(kind, "a call could not be used (%s: %s)", kind, type(error).__name__)

    def _tell(self, kind: str, step: int | None, detail: dict[str, Any], message: str = "") -> None:
        if self._sender is None or not self._open:
            return
        if kind == "phase" and self._sender.identity.rank != 0:
            return  # rank 0 tells it for the job; the others' rows and heartbeats carry it
        self._sender.announce(kind, detail, step, message)

    def _live(self, stack_seconds: float, timed: bool) -> None:
        if self._sender is not None:
            self._life = self._sender.life = Life(self._tell, timed)
            self._sender.pulse = Pulse(self._life, stack_seconds, self._tell)

    def watch(
        self,
        model: object,
        optimizer: object = None,
        *,
        scaler: object = None,
        layers_every: int = 0,
        update_every: int = 10,
        first_step: int = 0,
        comm_hook: bool = False,
    ) -> Watch | None:
        """Measure the gradients of a PyTorch ``model`` at every step, without waiting for the GPU.

        What it measures (``grad_norm, nonfinite, first_nonfinite, watched_elements, total_elements, scope``) goes into
        the row of the ``run.log`` that names the step, or by itself, counted from ``first_step``, where nobody logs
        it. ``optimizer`` tells where a step ends, and gives ``update_norm`` every ``update_every`` steps (Adam and SGD
        with momentum); ``scaler``, a ``GradScaler``, gives ``loss_scale`` and ``skipped``; ``layers_every`` sends the
        norm of each layer every so many steps. ``comm_hook`` replaces DDP's all-reduce by PyTorch's own hook for it:
        then ``wait_seconds`` is known, and gradients are seen before the reduction where they lie in its buckets. Call
        it once, behind ``DistributedDataParallel`` or ``fully_shard``.
        It returns what :meth:`~nantucket._watch.Watch.close` ends, or ``None`` where nothing can be watched.
        """
        try:
            if self._watch is not None:
                self._watch.close()
            if self._sender is None or not self._open:
                return None
            torch = sys.modules["torch"]
            options = Options(int(layers_every), int(update_every), int(first_step), bool(comm_hook))
            self._watch = Watch(torch, model, optimizer, scaler, options, self._sender.put, self._voice)
        except Exception as error:  # noqa: BLE001  a model that cannot be watched is still trained
            self._voice.once("watch", "the model is not watched: %s: %s", type(error).__name__, error)
            self._watch = None
        return self._watch

    def _hand_over(self, call: Later) -> None:
        """A call whose numbers are still on a device, from an integration."""
        if self._open and self._sender is not None:
            self._sender.put(call)
        else:
            self._closed()

    @property
    def verdict(self) -> Verdict | None:
        """What Nantucket has told this job, believed: signed for it, for this attempt, in time. No I/O."""
        return None if self._heed is None else self._heed.verdict

    def heed(self, step: int) -> None:
        """The end of ``step``: call it on every rank, each step, where ``on_divergence`` was given.

        This is where a verdict takes effect, on all ranks at the same step, and only if a rank has itself seen numbers
        that are not finite since the step that the verdict names. Raises :class:`~nantucket.Diverged` where the job
        wants to be stopped that way, and what ``agree`` raises. Without a wish it does nothing.
        """
        if self._heed is not None:
            self._heed.at(step)

    def _heed_verdicts(self, wish: Wish, key: str | None, options: dict[str, Any]) -> None:
        if self._sender is None or wish is None:
            return
        sender, identity = self._sender, self._sender.identity
        size = identity.extra.get("world_size")
        tell = self._tell_verdict if identity.rank == 0 else lambda _detail: None
        self._heed = sender.heed = make_heed(
            wish, key, identity.job, identity.attempt, size, self._voice, tell, os.environ, **options
        )

    def _tell_verdict(self, detail: dict[str, Any]) -> None:
        if self._sender is not None:
            self._sender.announce("verdict", detail)

    def _closed(self) -> None:
        self._not_taken += 1
        if self._forked:
            self._voice.once("forked", "run.log in a forked child is not reported: call nantucket.init there")
        elif self._sender is not None:
            self._voice.once("closed", "run.log after run.finish is not reported")

    @property
    def dropped(self) -> int:
        """Rows that were not and will not be delivered: the queue was full, or the collector refused them."""
        return self._not_taken + (0 if self._sender is None else self._sender.dropped)

    @property
    def waiting(self) -> int:
        """Rows and calls that are not durable yet."""
        return 0 if self._sender is None else self._sender.waiting

    def counts(self) -> dict[str, int]:
        """Rows made, acknowledged, dropped and refused; values that could not be used; calls not taken."""
        counts = dict.fromkeys(COUNTED, 0) if self._sender is None else dict(self._sender.counts)
        return {**counts, "dropped": self.dropped, "calls_not_taken": self._not_taken}

    def finish(self, timeout_seconds: float = FINISH_SECONDS) -> None:
        """Deliver what waits, for at most ``timeout_seconds``, and end the run. A second call does nothing."""
        self._finish(timeout_seconds, "finished")

    def _finish(self, seconds: float, status: str) -> None:
        if not self._open or self._sender is None:
            return
        self._open = False
        atexit.unregister(self._at_exit)
        try:
            if self._watch is not None:
                self._watch.close()
            left = self._sender.stop(seconds, min(FINISH_GRACE_SECONDS, seconds), {"status": status})
            if left:
                self._voice.once("left", "%d rows were not delivered: no collector took them in time", left)
        except Exception as error:  # noqa: BLE001  the end of a job must not fail on its reporting
            self._voice.once("finish", "run.finish failed: %s", type(error).__name__)

    def _at_exit(self) -> None:
        self._finish(FINISH_SECONDS, "exited")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(FINISH_SECONDS, "finished" if kind is None else f"failed: {kind.__name__}")

    def _after_fork(self) -> None:
        if self._open and self._sender is not None:
            self._open, self._forked = False, True
            self._sender.abandon()


def _kept(value: object) -> object:
    """A value as it is now: it may change after ``log`` has returned. What lies on a GPU is copied without waiting."""
    return Readback(sys.modules["torch"], value) if is_on_device(value) else plain(value)


def _forked_child() -> None:
    for run in list(_runs):
        run._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked_child)


def init(
    job: str,
    rank: int | None = None,
    *,
    world_size: int | None = None,
    role: str = "trainer",
    attempt: str | None = None,
    url: str | None = None,
    token: str | None = None,
    node: str | None = None,
    region: str | None = None,
    uuid: str | None = None,
    gpu: int | None = None,
    dp: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    mesh: object = None,
    on_divergence: Wish = None,
    verdict_key: str | None = None,
    agree: Agree | None = None,
    checkpoint: Callable[[str], object] | None = None,
    quarantine: str = "",
    stack_seconds: float | None = None,
    timed: bool = True,
) -> Run:
    """Start to report this process as ``rank`` of ``job``. It never raises and does not wait for the collector.

    ``rank`` and ``world_size`` default to the launcher's (torchrun, Slurm, MPI), ``attempt`` to ``NANTUCKET_ATTEMPT``
    or the launcher's, ``url`` to ``NANTUCKET_URL`` or :func:`default_url`, ``token`` to ``NANTUCKET_TOKEN`` or what is
    in the file that ``NANTUCKET_TOKEN_FILE`` names. ``node`` and ``region`` default to the collector's; ``uuid`` is
    this rank's GPU. ``dp, tp, pp, ep`` are its coordinates: by
    default those in ``mesh``, a PyTorch ``DeviceMesh`` with names, else those of Megatron-LM where it is set up.

    ``on_divergence`` says what :meth:`Run.heed` does when Nantucket tells the job to stop: ``"shadow"``, ``"raise"``,
    ``"checkpoint"`` or a function; nothing by default. ``verdict_key`` defaults to ``NANTUCKET_VERDICT_KEY``, ``agree``
    brings all ranks to one answer, ``checkpoint`` saves to a path in ``quarantine``.

    ``stack_seconds`` (default ``NANTUCKET_STACK_SECONDS``, else 60; 0 for never): where this process stands is sent
    when it has called nothing of the run for so long and for three of its longest steps. It takes ``faulthandler``'s
    one timer. ``timed=False``: the moments of ``run.log`` are none of the training's, no ``step_seconds`` is made of
    them.
    """
    voice = Voice()
    try:
        options = {"world_size": world_size, "role": role, "attempt": attempt, "node": node, "region": region}
        options.update(
            {"uuid": uuid, "gpu": gpu, **_coordinates(mesh, {"dp": dp, "tp": tp, "pp": pp, "ep": ep}, voice)}
        )
        run = _start(job, rank, options, url, token, voice, _stack_seconds(stack_seconds, voice), timed)
        divergence = {"agree": agree, "checkpoint": checkpoint, "quarantine": quarantine}
        run._heed_verdicts(on_divergence, verdict_key, divergence)
        return run
    except Exception as error:  # noqa: BLE001  a job must not fail to start because of its reporting
        voice.once("init", "reporting could not be started and is off: %s", type(error).__name__)
        return Run(None, "", voice)


def _start(
    job: object,
    rank: object,
    options: Mapping[str, object],
    url: object,
    token: object,
    voice: Voice,
    stack_seconds: float,
    timed: bool,
) -> Run:
    identity, problems = identify(job, rank, options, os.environ, _clock.now())
    for problem in problems:
        voice.once("init " + problem.partition(":")[0], "init: %s", problem)
    sender = Sender(identity, _url_of(url), _token_of(token, voice), voice)
    run = Run(sender, identity.attempt, voice)
    _runs.add(run)
    detail: dict[str, Any] = {"sdk": f"python/{__version__}", "pid": os.getpid(), **identity.extra}
    run._live(stack_seconds, timed)
    sender.start(detail)
    atexit.register(run._at_exit)
    return run


def _coordinates(mesh: object, given: dict[str, int | None], voice: Voice) -> dict[str, int | None]:
    try:
        found: dict[str, int | None] = {**coordinates_of(mesh)}
    except Exception as error:  # noqa: BLE001  the mesh is the job's own and may raise anything
        voice.once("mesh", "init: where this rank stands cannot be read from mesh: %s", type(error).__name__)
        return given
    return {**found, **{name: value for name, value in given.items() if value is not None}}


def _stack_seconds(given: object, voice: Voice) -> float:
    raw = given if given is not None else os.environ.get("NANTUCKET_STACK_SECONDS") or STACK_SECONDS
    try:
        seconds = float(raw)  # type: ignore[arg-type]  # what float refuses is caught
        if 0 <= seconds < STACK_SECONDS_MAX:
            return seconds
    except (TypeError, ValueError):
        pass
    voice.once("stack_seconds", "stack_seconds: expected seconds from 0 on, found %s", ascii(str(raw)[:40]))
    return STACK_SECONDS


def _url_of(given: object) -> Callable[[], str]:
    chosen = given if given is not None else os.environ.get("NANTUCKET_URL") or None
    if chosen is None:
        return default_url
    text = str(chosen)
    return lambda: text


def _token_of(given: object, voice: Voice) -> Secret | None:
    raw = given if given is not None else from_environment("NANTUCKET_TOKEN", os.environ, voice)
    if raw is None:
        return None
    text = raw.strip() if isinstance(raw, str) else ""
    if 0 < len(text) <= TOKEN_CHARACTERS_MAX and text.isascii() and text.isprintable() and " " not in text:
        return Secret(text)
    voice.once("token", "the token is not a token (expected printable ASCII without spaces); none is sent")
    return None
