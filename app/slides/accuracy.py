"""What the rank costs: the curve of the step's method."""

from __future__ import annotations

from app.components import slide_parts
from app.components.slide_parts import Look


def show(look: Look) -> None:
    if look.evidence.curve is None:
        slide_parts.numbers(look)
    else:
        slide_parts.scores(look, look.evidence.curve, look.evidence.curve_badge)
