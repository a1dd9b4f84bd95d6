"""The text that the demo trains on, as integers, and random pieces of it.

The text is the first part of the first book of Newton's *Opticks* (1730), in the public domain; ``corpus/NOTICE``
says where it comes from. One character is one token.
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from app.demo_job.layers import Tokens

CORPUS_FILE = "newton-opticks-book-1-part-1.txt"


@dataclass(frozen=True)
class Corpus:
    """``tokens`` ([characters]) are indices into ``characters``, the sorted distinct characters of the text."""

    characters: str
    tokens: Tokens

    @classmethod
    def of_text(cls, text: str) -> "Corpus":
        """Number the characters of ``text`` in their order by code point."""
        characters = "".join(sorted(set(text)))
        index = {character: number for number, character in enumerate(characters)}
        return cls(characters, np.array([index[character] for character in text], dtype=np.int64))

    def batch(self, rng: np.random.Generator, batch: int, context: int) -> tuple[Tokens, Tokens]:
        """``batch`` random pieces: inputs and targets, both [batch, context], the targets one character further on."""
        starts = rng.integers(0, self.tokens.size - context, size=batch)
        pieces = self.tokens[starts[:, None] + np.arange(context + 1)]
        return pieces[:, :-1], pieces[:, 1:]


def load_corpus() -> Corpus:
    """The corpus that is shipped with the package."""
    return Corpus.of_text((files(__package__) / "corpus" / CORPUS_FILE).read_text(encoding="utf-8"))
