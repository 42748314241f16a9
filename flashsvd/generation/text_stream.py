"""Text as its tokens come: whole characters, and an end where a stop text begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, as a tokenizer decodes them. Bytes that are no text become U+FFFD."""

_INCOMPLETE = "\ufffd"


class TextStream:
    """The text of one sequence. A character whose bytes are spread over several tokens appears with the last of them,
    and what may be the beginning of a stop text is held back until it is known not to be.

    >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), stop=("END",))
    >>> [stream.add(byte) for byte in "é.EN!END.".encode()], stream.text, stream.stopped
    (['', 'é', '.', '', '', 'EN!', '', '', '', ''], 'é.EN!', True)
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Tokens are decoded from the last place but one at which the text was whole: what a tokenizer makes of a
        # token depends on the one before, and to decode all of them each time would cost their square.
        self._from = self._whole = 0
        self._seen = 0
        self._decoded = self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Takes one more token; returns the text that is certain now. Nothing more comes after a stop text."""
        if self.stopped:
            return ""
        self._ids.append(token)
        found = self._decode(self._ids[self._from :])
        whole = not found.endswith(_INCOMPLETE)
        found = found if whole else found[:-1]
        self._decoded += found[self._seen :]
        self._seen = max(self._seen, len(found))
        if whole:
            self._from, self._whole = self._whole, len(self._ids)
            self._seen = len(self._decode(self._ids[self._from :]))
        return self._release(self._held())

    def finish(self) -> str:
        """The rest, also what is not whole: no token will follow."""
        if self.stopped:
            return ""
        self._decoded += self._decode(self._ids[self._from :])[self._seen :]
        return self._release(0)

    def _release(self, held: int) -> str:
        """Moves decoded text to `text`, but for `held` characters at its end and what a stop text ends."""
        places = [place for word in self._stop if (place := self._decoded.find(word)) >= 0]
        if places:
            self.stopped = True
            self._decoded, held = self._decoded[: min(places)], 0
        cut = len(self._decoded) - held
        piece, self._decoded = self._decoded[:cut], self._decoded[cut:]
        self.text += piece
        return piece

    def _held(self) -> int:
        """Characters at the end that a stop text may begin with."""
        return max(
            (
                size
                for word in self._stop
                for size in range(1, len(word))
                if self._decoded.endswith(word[:size])
            ),
            default=0,
        )
