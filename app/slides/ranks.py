"""Which heads and layers are cut: the grid, as high as the slide."""

from __future__ import annotations

from app.components import markup, slide_parts
from app.components.slide_parts import FACTOR, Look
from app.words import percent
from flashsvd.figures.grid import rank_grid

_HEIGHT = 440


def show(look: Look) -> None:
    plan = look.evidence.plan
    if plan is None:
        slide_parts.nothing(look)
        return
    words = percent(round(plan.keep, 2))
    markup.sentence([("The plan keeps ", False), (words, True), (" of the factored weights", False)], None)
    rows = len(plan.shape.layers)
    figure = rank_grid(plan, mode=markup.mode(), row_px=round(max(4, min(44, _HEIGHT / FACTOR // rows))))
    slide_parts.chart(figure, key="grid", name="Ranks")
