"""Takes tokens as they come, of all prompts at once, and makes texts of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flashsvd.generation.request import GenerateRequest
from flashsvd.generation.text_stream import TextStream
from flashsvd.models.load import LoadedModel

Ended = Literal["end of text", "stop text", "length", "interrupt"]
OnText = Callable[[int, str], None]
"""Called with the place of a prompt and a piece of what is written after it."""


@dataclass(frozen=True)
class Written:
    """What came after one prompt. text: without the stop text that ended it, None without a tokenizer. tokens: all that
    were picked, also those of a stop text or an end of text."""

    prompt: str | None
    prompt_tokens: int
    text: str | None
    tokens: tuple[int, ...]
    ended: Ended


class AllEnded(Exception):
    """No prompt is written on any more."""


class Writer:
    """times: when each round of tokens came, by perf_counter, in seconds."""

    def __init__(
        self,
        request: GenerateRequest,
        loaded: LoadedModel,
        count: int,
        on_text: OnText | None,
        tell: Callable[[float], None],
        most: int,
    ) -> None:
        tokenizer: Any = loaded.tokenizer
        self._request = request
        self._on_text = on_text or (lambda place, piece: None)
        self._tell = tell
        self._most = most
        self._end_ids = frozenset() if request.prompt_tokens else end_ids(loaded)
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._ended: list[Ended | None] = [None] * count
        self._streams: list[TextStream] | None = None
        if tokenizer is not None and not request.prompt_tokens:

            def decode(ids: Sequence[int]) -> str:
                text: str = tokenizer.decode(
                    list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                return text

            self._streams = [TextStream(decode, request.stop) for _ in range(count)]
        self.times: list[float] = []

    def take(self, tokens: Any) -> None:
        """The next token of every prompt, [B]. Raises AllEnded once none is written on."""
        self.times.append(time.perf_counter())
        for place, token in enumerate(map(int, tokens)):
            if self._ended[place] is None:
                self._take(place, token)
        self._tell(len(self.times) / self._most)
        if all(ended is not None for ended in self._ended):
            raise AllEnded

    def _take(self, place: int, token: int) -> None:
        self._tokens[place].append(token)
        if token in self._end_ids:
            self._ended[place] = "end of text"
        elif self._streams is not None:
            self._show(place, self._streams[place].add(token))
            if self._streams[place].stopped:
                self._ended[place] = "stop text"

    def finish(self, interrupted: bool) -> None:
        """No token follows."""
        for place, ended in enumerate(self._ended):
            if self._streams is not None:
                self._show(place, self._streams[place].finish())
            if ended is None:
                self._ended[place] = "interrupt" if interrupted else "length"

    def _show(self, place: int, piece: str) -> None:
        if piece:
            self._on_text(place, piece)

    def written(self, prompts: Sequence[Sequence[int]]) -> tuple[Written, ...]:
        """What came of it."""
        texts = self._request.prompts or (None,) * len(prompts)
        return tuple(
            Written(
                text,
                len(prompt),
                None if self._streams is None else self._streams[place].text,
                tuple(self._tokens[place]),
                self._ended[place] or "length",
            )
            for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        )


def end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end a text, as the model's configuration has them: none, one or several."""
    settings = getattr(loaded.model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    if found is None:
        found = getattr(loaded.model.config, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset(map(int, found)) if isinstance(found, list | tuple) else frozenset({int(found)})
