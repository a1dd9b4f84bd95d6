"""A token that does not show itself."""

from __future__ import annotations


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
