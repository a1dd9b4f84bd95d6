"""Where a verdict takes effect: heard on one rank, agreed on all, confirmed by one, and acted upon once at one step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union

from nantucket._say import Voice
from nantucket._secret import from_environment
from nantucket._verdict import Judge, NotBelieved, Verdict, key_of

Agree = Callable[[Sequence[int]], Sequence[int]]
"""Gives, on every rank at the same call, the greatest of each number over all ranks. It may answer with those of the
call before, as long as it does so on all ranks alike."""
Wish = Union[str, Callable[[Verdict], object], None]
"""What a job wants done: ``"shadow"``, ``"raise"``, ``"checkpoint"``, something to call, or nothing."""
SHADOW, RAISE, CHECKPOINT = "shadow", "raise", "checkpoint"
WISHES = (SHADOW, RAISE, CHECKPOINT)
OFF_VARIABLE = "NANTUCKET_VERDICTS"
"""``off`` there makes every job of this environment deaf, whatever its code asks for."""


class Diverged(RuntimeError):
    """Raised on every rank at the same step: the job's numbers are not finite, and it was told to stop.

    ``step`` is where it stops, ``bad_step`` where it began; ``checkpoint`` is the quarantined one, if there is any.
    """

    def __init__(self, step: int, bad_step: int, checkpoint: str | None = None) -> None:
        kept = "" if checkpoint is None else f"; what there is now was kept apart in {checkpoint}"
        super().__init__(f"stopped at step {step}: the numbers are not finite since step {bad_step}{kept}")
        self.step, self.bad_step, self.checkpoint = step, bad_step, checkpoint


class Heed:
    """What one process knows of verdicts. The sender's thread tells it; the training loop asks it with :meth:`at`."""

    def __init__(
        self,
        wish: Wish,
        judge: Judge | None,
        voice: Voice,
        tell: Callable[[dict[str, Any]], None],
        *,
        agree: Agree | None = None,
        checkpoint: Callable[[str], object] | None = None,
        quarantine: str = "",
    ) -> None:
        self.verdict: Verdict | None = None
        self.not_believed: dict[str, int] = {}
        """Verdicts that counted for nothing, by reason."""
        self._wish, self._judge, self._voice, self._tell = wish, judge, voice, tell
        self._agree, self._checkpoint, self._quarantine = agree, checkpoint, quarantine
        self._nonfinite_step = -1
        self._acted = False

    @property
    def is_on(self) -> bool:
        """Whether anything would be done."""
        return self._wish is not None and self._judge is not None

    def heard(self, body: Mapping[str, Any], now: float) -> None:
        """The collector has said a verdict. Called by the sender's thread; ``now`` is UTC seconds."""
        if self._judge is None:
            return
        try:
            verdict = self._judge.believe(body, now)
        except NotBelieved as error:
            self.not_believed[error.reason] = self.not_believed.get(error.reason, 0) + 1
            if error.reason != "repeated":
                self._voice.once("verdict " + error.reason, "a verdict was not believed: %s", error.reason)
            return
        self.verdict = self.verdict or verdict

    def saw(self, row: Mapping[str, Any]) -> None:
        """This rank has made a training row that is not finite. A step that the loss scaler skipped proves nothing."""
        if not row.get("skipped"):
            self._nonfinite_step = max(self._nonfinite_step, int(row["step"]))

    def at(self, step: int) -> None:
        """The end of a step, on every rank. Raises :class:`Diverged` where the job wants that, and nothing else."""
        if not self.is_on or self._acted:
            return
        verdict = self.verdict
        bad_step = -1 if verdict is None else verdict.step
        confirmed = int(0 <= bad_step <= self._nonfinite_step)
        mine = (int(verdict is not None), confirmed, bad_step)
        heard, confirmed, bad_step = mine if self._agree is None else self._agree(mine)
        if heard and confirmed:
            self._acted = True
            self._act(step, bad_step)

    def _act(self, step: int, bad_step: int) -> None:
        verdict = self.verdict or Verdict("stop", bad_step, 0.0, "")
        if self._wish == SHADOW:
            self._say("shadow", step, bad_step)
            self._voice.once("shadow", "would have stopped at step %d: not finite since step %d", step, bad_step)
            return
        if callable(self._wish):
            self._say("called", step, bad_step)
            self._wish(verdict)
            return
        kept = self._kept_apart(step) if self._wish == CHECKPOINT else None
        self._say("stopped", step, bad_step, kept)
        raise Diverged(step, bad_step, kept)

    def _kept_apart(self, step: int) -> str | None:
        """Let the job save what there is now, under a name that no good checkpoint has."""
        if self._checkpoint is None:
            return None
        name = path = os.path.join(self._quarantine, f"quarantine-step-{step}")
        number = 1
        while os.path.exists(path):
            number += 1
            path = f"{name}-{number}"
        self._checkpoint(path)
        return path

    def _say(self, outcome: str, step: int, bad_step: int, checkpoint: str | None = None) -> None:
        detail: dict[str, Any] = {"outcome": outcome, "step": step, "bad_step": bad_step}
        if checkpoint is not None:
            detail["checkpoint"] = checkpoint[:512]
        self._tell(detail)


def make_heed(
    wish: Wish,
    key: str | None,
    job: str,
    attempt: str,
    world_size: int | None,
    voice: Voice,
    tell: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str],
    **options: Any,
) -> Heed:
    """The job's wish, made safe: what is missing for it is said once, and then nothing is done, or only said."""
    if wish is None or environment.get(OFF_VARIABLE, "").strip().lower() == "off":
        return Heed(None, None, voice, tell)
    if not callable(wish) and wish not in WISHES:
        voice.once("wish", "on_divergence: expected %s or a function; no verdict is heeded", ", ".join(WISHES))
        return Heed(None, None, voice, tell)
    given = key if key is not None else from_environment("NANTUCKET_VERDICT_KEY", environment, voice)
    try:
        judge = Judge(key_of(given or ""), job, attempt)
    except ValueError as error:
        voice.once("verdict key", "on_divergence needs NANTUCKET_VERDICT_KEY: %s; no verdict is heeded", error)
        return Heed(None, None, voice, tell)
    if wish == CHECKPOINT and options.get("checkpoint") is None:
        voice.once("checkpoint", 'on_divergence="checkpoint" needs checkpoint=, what saves to a path; it stops without')
    if (world_size or 1) > 1 and options.get("agree") is None and wish != SHADOW:
        voice.once("agree", "on_divergence needs agree= where there are several ranks; it only says what it would do")
        wish = SHADOW
    return Heed(wish, judge, voice, tell, **options)
