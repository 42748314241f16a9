"""What is on chip, and how full the GPU is: the chosen kernel on the chosen GPU, and what the rank wastes."""

from __future__ import annotations

from app.components import markup, slide_parts
from app.components.slide_parts import Look
from app.components.tile_panels import request_of
from app.tile_subject import Subject, layer_kernels
from app.words import Segment, article
from flashsvd.errors import FlashSVDError
from flashsvd.figures.tiles_occupancy import occupancy_bars, waves_words
from flashsvd.onchip.calls import KERNELS
from flashsvd.onchip.fullness import Fullness, frame, fullness
from flashsvd.onchip.request import CompileRequest
from flashsvd.onchip.stairs import sentence, stair_at

_FACTOR = 1.5


def show(look: Look) -> None:
    if look.evidence.plan is None:
        slide_parts.unknown(look)
        return
    try:
        subject = _subject(look)
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        return
    if isinstance(subject, str):
        markup.empty("No kernel streams this layer", subject)
        return
    rows = fullness(subject.call, subject.find)
    mine = next(row for row in rows if row.gpu == subject.gpu)
    markup.sentence(_sentence(KERNELS[subject.call.kernel].title, mine), subject.badge)
    markup.head("Warps per multiprocessor on every GPU", _padding(subject))
    figure = occupancy_bars(rows, chosen=subject.gpu, mode=markup.mode())
    slide_parts.chart(
        figure, key="occupancy", name="Occupancy on every GPU", data=frame(rows), factor=_FACTOR
    )


def wanted(look: Look) -> CompileRequest | None:
    """The kernel of this slide, compiled for just its sizes."""
    try:
        subject = None if look.evidence.plan is None else _subject(look)
    except FlashSVDError:
        return None
    return request_of(subject) if isinstance(subject, Subject) else None


def _subject(look: Look) -> Subject | str:
    """What was chosen on the page Tiles, or why there is nothing to choose."""
    assert look.evidence.plan is not None
    kernels = layer_kernels(look.evidence.plan, look.settings, look.evidence, look.said)
    return kernels.subject or kernels.refusals


def _sentence(title: str, row: Fullness) -> list[Segment]:
    name = title[:1].upper() + title[1:]
    if row.refusal:
        return [(f"{name} on {row.gpu}: ", False), (row.refusal, True)]
    share = f"{row.warps} of {row.max_warps} warps"
    return [
        (f"{name} keeps ", False),
        (share, True),
        (f" busy on {article(row.gpu)}'s multiprocessors, held back by ", False),
        (row.limiter, True),
        (f"; its programs make {waves_words(row.waves)}.", False),
    ]


def _padding(subject: Subject) -> str:
    """What limits them, and how much of the arithmetic is padding."""
    row = subject.row
    if row is None or row.refusal or not subject.call.rank:
        return "with what limits them"
    first, _ = sentence((stair_at(row, subject.call, subject.rank),), subject.rank)
    return f"what limits them · {first[:1].lower()}{first[1:].removesuffix('.')}"
