"""A token that does not show itself, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from nantucket._say import Voice

FILE_BYTES_MAX = 4_096
"""A token has 48 characters, a key 43."""


def from_environment(name: str, environment: Mapping[str, str], voice: Voice) -> str | None:
    """What the variable ``name`` holds, else what is in the file that ``NAME_FILE`` names: a secret that is mounted."""
    if environment.get(name):
        return environment[name]
    place = environment.get(name + "_FILE")
    if not place:
        return None
    try:
        with open(place, encoding="utf-8") as file:
            return file.read(FILE_BYTES_MAX).strip() or None
    except (OSError, ValueError) as error:
        voice.once(name, "%s_FILE cannot be read: %s", name, getattr(error, "strerror", None) or type(error).__name__)
        return None


class Secret:
    """Holds a token; ``repr`` and ``str`` show that there is one, not which."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """The token itself, for the handshake."""
        return self._text

    def masked(self, text: str) -> str:
        """``text`` (an answer from outside, say) without the token in it."""
        return text.replace(self._text, "***")
