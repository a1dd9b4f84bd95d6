"""From a file's bytes to steps, in whatever format it turns out to be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from app.follow.formats.deepspeed import DeepSpeed
from app.follow.formats.json_lines import JsonLines, trainer_steps
from app.follow.formats.megatron import Megatron
from app.follow.formats.tensorboard import TensorBoard
from app.follow.formats.trainer_lines import TrainerLines
from app.follow.formats.wandb import FILE_HEAD, Wandb
from app.follow.step import Step

LINE_BYTES_MAX = 64 * 1024
"""A longer line is of no format here; it is counted and passed over."""
DOCUMENT_BYTES_MAX = 256 << 20
"""A ``trainer_state.json`` of a million entries has as much."""
TRAINER_STATE = "trainer_state.json"
LINES: dict[str, Callable[[], "LineFormat"]] = {
    "megatron": Megatron, "deepspeed": DeepSpeed, "trainer": TrainerLines, "jsonl": JsonLines,
}  # fmt: skip
FORMATS = ("auto", *LINES, "trainer_state", "tensorboard", "wandb")


class LineFormat(Protocol):
    """A format that is read line by line."""

    name: str

    def line(self, text: str) -> Step | None:
        """The step that a line tells of."""


class Reading(Protocol):
    """A file that is being read from its beginning."""

    name: str
    unreadable: int
    """Entries, or lines that were too long, of which nothing could be made."""

    def feed(self, data: bytes) -> Iterator[Step]:
        """The steps in what came."""

    def rest(self) -> Iterator[Step]:
        """What was held back in case more came for it: nothing did for a while."""


class Lines:
    """Text. Each line is of the first format that understands it: a job's output is a mixture."""

    def __init__(self, formats: tuple[str, ...] = tuple(LINES)) -> None:
        self.name = "text" if len(formats) > 1 else formats[0]
        self.unreadable = 0
        self._formats = [LINES[name]() for name in formats]
        self._held = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[Step]:
        """The steps of the lines that are complete. A progress bar ends its lines with a carriage return."""
        self._held += data.replace(b"\r", b"\n")
        *lines, rest = self._held.split(b"\n")
        self._held = bytearray(rest)
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        if len(self._held) > LINE_BYTES_MAX:
            self.unreadable += not self._skipping
            self._skipping = True
            self._held.clear()
        for line in lines:
            if len(line) > LINE_BYTES_MAX:
                self.unreadable += 1
            elif (step := self._step(line.decode("utf-8", "replace"))) is not None:
                yield step

    def _step(self, text: str) -> Step | None:
        for each in self._formats:
            step = each.line(text)
            if step is not None:
                return step
        return None

    def rest(self) -> Iterator[Step]:
        """Nothing: a line without an end is not whole."""
        return iter(())


class Document:
    """A ``trainer_state.json``: written whole, so that what came is read once it is whole."""

    name = "trainer_state"

    def __init__(self) -> None:
        self.unreadable = 0
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Step]:
        """Its entries, once its end has come."""
        if len(self._held) + len(data) > DOCUMENT_BYTES_MAX:
            self.unreadable += 1
            self._held.clear()
            return
        self._held += data
        if not self._held.rstrip().endswith(b"}"):
            return
        try:
            steps = list(trainer_steps(self._held.decode("utf-8", "replace")))
        except ValueError:
            return  # it ends with a brace by chance: more comes
        yield from steps

    def rest(self) -> Iterator[Step]:
        """Nothing: what is not whole is being written."""
        return iter(())


def reading_of(path: Path, first: bytes, wanted: str = "auto") -> Reading:
    """Who reads the file at ``path`` that begins with ``first``. ``wanted`` is one of :data:`FORMATS`."""
    if wanted in LINES:
        return Lines((wanted,))
    if wanted == "tensorboard" or (wanted == "auto" and "tfevents" in path.name):
        return TensorBoard()
    if wanted == "wandb" or (wanted == "auto" and first.startswith(FILE_HEAD)):
        return Wandb()
    if wanted == "trainer_state" or (wanted == "auto" and path.name == TRAINER_STATE):
        return Document()
    return Lines()
