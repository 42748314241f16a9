"""What is on chip, and how full the GPU is: the chosen kernel on the chosen GPU, and what the rank wastes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.components import markup, slide_parts
from app.components.slide_parts import Look
from app.components.tile_panels import Subject, request_of
from app.evidence import Badge
from app.words import Segment, article
from flashsvd.errors import FlashSVDError
from flashsvd.figures.tiles_occupancy import occupancy_bars, waves_words
from flashsvd.gpus import GPUS, gpu_of_device
from flashsvd.onchip.calls import KERNELS, KernelCall, asked_rank, calls_of
from flashsvd.onchip.compiled import Compiled, shipped
from flashsvd.onchip.fullness import Fullness, frame, fullness
from flashsvd.onchip.request import CompiledCalls, CompileRequest
from flashsvd.onchip.stairs import sentence, stair_at

_FACTOR = 1.5
_DEFAULT_GPU = "H200"


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
    plan, settings, said = look.evidence.plan, look.settings, look.said
    assert plan is not None
    layers = tuple(str(number) for number in range(1, len(plan.shape.layers) + 1))
    layer = int(said.chosen("tiles_layer", layers, "1")) - 1
    calls = calls_of(plan, layer, settings.batch, settings.seq, settings.dtype)
    known = {name: call for name, call in calls.items() if isinstance(call, KernelCall)}
    if not known:
        return f"{KERNELS['ffn'].title}: {calls['ffn']}."
    kernel = said.chosen("tiles_kernel", tuple(known), next(iter(known)))
    call = known[kernel]
    default = _default_gpu(look)
    name = said.chosen("tiles_gpu", tuple(one.name for one in GPUS), default)
    table, mine = shipped(), _of_tab()

    def find(call: KernelCall, gpu: str) -> Compiled | None:
        return mine.get((call, gpu)) or table.find(call, gpu)

    here = mine.get((call, name))
    badge = Badge(
        "COMPILED", f"here, by Triton {here.triton}" if here else f"by Triton {table.manifest.triton}"
    )
    return Subject(call, asked_rank(plan, layer, kernel), name, find, badge, default)


def _of_tab() -> Mapping[tuple[KernelCall, str], Compiled]:
    """What this tab compiled."""
    results: Mapping[Any, Any] = st.session_state.get("results", {})
    return {
        (row.call, row.gpu): row
        for result in results.values()
        if isinstance(result, CompiledCalls)
        for row in result.rows
    }


def _default_gpu(look: Look) -> str:
    result = look.evidence.comparison
    device = result.machine.accelerator if result is not None else None
    found = gpu_of_device(device) if device else None
    return found.name if found else _DEFAULT_GPU


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
