"""Where the bytes go: the timeline alone, as high as the slide."""

from __future__ import annotations

from app.components import markup, slide_parts
from app.components.slide_parts import Look
from app.words import Segment
from flashsvd.errors import format_bytes


def show(look: Look) -> None:
    result = look.evidence.comparison
    if result is None:
        slide_parts.nothing(look)
        return
    run, dense = slide_parts.chosen_run(look), result.run("dense")
    words: list[Segment] = [
        (f"At its peak {run.engine} holds ", False),
        (format_bytes(run.peak_activation_bytes), True),
    ]
    if dense is not None and run is not dense:
        words += [("; dense holds ", False), (format_bytes(dense.peak_activation_bytes), True)]
    markup.sentence([*words, (".", False)], look.evidence.comparison_badge)
    slide_parts.honest(look)
    slide_parts.memory(look, 340)
