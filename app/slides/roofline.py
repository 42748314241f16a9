"""What the limit is: every operation under the roof that was chosen."""

from __future__ import annotations

from app import roofline_words, roofs, services
from app.components import markup, slide_parts
from app.components.slide_parts import Look
from app.evidence import Badge
from flashsvd.errors import FlashSVDError
from flashsvd.roofline_measured import Bench

_HEIGHT = 330


def show(look: Look) -> None:
    plan = look.evidence.plan
    if plan is None:
        slide_parts.unknown(look)
        return
    try:
        bench = services.bench()
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        bench = Bench((), {})
    found = roofs.roof(look.settings, plan, look.said, bench)
    markup.sentence(found.sentence(look.settings), Badge("PREDICTED", "counted"))
    stars = " · ★ whole model, measured" if found.stars else ""
    markup.head(
        found.name.partition(",")[0],
        f"{roofline_words.MODES[found.mode].lower()} · {roofline_words.source(found.ceiling)}{stars}",
        None,
        roofline_words.key(found.engine, markup.mode()),
    )
    figure = roofs.picture(found, markup.mode(), _HEIGHT)
    slide_parts.chart(figure, key="roofline", name="Roofline", data=found.table())


def wanted(look: Look) -> None:
    """It is counted: there is nothing to run."""
