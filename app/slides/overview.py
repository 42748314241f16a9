"""Is it worth it: the sentence, the four numbers, and memory while the model runs."""

from __future__ import annotations

from app.components import slide_parts
from app.components.slide_parts import Look


def show(look: Look) -> None:
    slide_parts.numbers(look)
    if look.evidence.comparison is not None:
        slide_parts.memory(look, 224)
