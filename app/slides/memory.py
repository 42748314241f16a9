"""Where the bytes go: the timeline alone, as high as the slide."""

from __future__ import annotations

from app.components import markup, slide_parts
from app.components.slide_parts import Look


def show(look: Look) -> None:
    if look.evidence.comparison is None:
        slide_parts.nothing(look)
        return
    markup.sentence([("Where the bytes go while the model runs", False)], look.evidence.comparison_badge)
    slide_parts.honest(look)
    slide_parts.memory(look, 340)
