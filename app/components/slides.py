"""Slides: what each page looks like from the back row. A page without one of its own shows the four numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import streamlit as st

from app.components import charts, markup
from app.evidence import Evidence
from app.state import Settings
from app.words import cards, mismatch, provenance, red_gate, sentence
from flashsvd.figures import theme
from flashsvd.figures.curve import curve
from flashsvd.figures.grid import rank_grid
from flashsvd.figures.timeline import timeline

_HEIGHT = 440


def slide(view: str, settings: Settings, evidence: Evidence) -> None:
    """The slide of a page for these settings."""
    _SLIDES.get(view, _numbers)(settings, evidence)


def _numbers(settings: Settings, evidence: Evidence) -> None:
    result = evidence.comparison
    if result is None:
        _nothing(settings)
        return
    markup.sentence(sentence(result), evidence.comparison_badge)
    _honest(settings, evidence)
    markup.cards(cards(result))


def _overview(settings: Settings, evidence: Evidence) -> None:
    _numbers(settings, evidence)
    if evidence.comparison is not None:
        _timeline(evidence, 300)


def _memory(settings: Settings, evidence: Evidence) -> None:
    if evidence.comparison is None:
        _nothing(settings)
        return
    markup.sentence([("Where the bytes go while the model runs", False)], evidence.comparison_badge)
    _honest(settings, evidence)
    _timeline(evidence, _HEIGHT + 60)


def _ranks(settings: Settings, evidence: Evidence) -> None:
    plan = evidence.plan
    if plan is None:
        _nothing(settings)
        return
    words = f"{100 * plan.keep:.0f} %"
    markup.sentence([("The plan keeps ", False), (words, True), (" of the factored weights", False)], None)
    rows = len(plan.shape.layers)
    figure = rank_grid(plan, mode=markup.mode(), row_px=max(6, min(64, _HEIGHT // rows)))
    charts.chart(figure, key="slide_grid", name="Ranks")


def _accuracy(settings: Settings, evidence: Evidence) -> None:
    result = evidence.curve
    if result is None:
        _numbers(settings, evidence)
        return
    markup.sentence([("What the rank costs", False)], evidence.curve_badge)
    run = evidence.comparison.run("flash") if evidence.comparison else None
    here = (evidence.comparison.keep, run.metric) if evidence.comparison and run and run.metric else None
    figure = curve(
        result,
        here=here,
        dense=result.dense,
        mode=markup.mode(),
        height=_HEIGHT + 60,
        machine=result.machine.label,
    )
    charts.chart(figure, key="slide_curve", name="What the rank costs")


_SLIDES: Mapping[str, Callable[[Settings, Evidence], None]] = MappingProxyType(
    {"overview": _overview, "memory": _memory, "ranks": _ranks, "accuracy": _accuracy}
)


def _timeline(evidence: Evidence, height: int) -> None:
    result = evidence.comparison
    assert result is not None
    run = result.run("flash") or result.runs[-1]
    if run.timeline.empty:
        markup.muted("This run recorded no timeline.")
        return
    colour = theme.engine_colour(run.engine, markup.mode())
    markup.head(
        "Memory while the model runs",
        "MiB beyond the weights · dashed: dense",
        None,
        [(theme.faded(colour, 0.55), "activations"), (colour, "workspace")],
    )
    figure = timeline(
        run,
        len(result.model.shape.layers),
        ghost=result.run("dense"),
        mode=markup.mode(),
        height=height,
        source=provenance(result.machine, result.seed),
    )
    charts.chart(figure, key="slide_timeline", name="Memory while the model runs", data=run.timeline)


def _honest(settings: Settings, evidence: Evidence) -> None:
    """Says where the numbers answer something else than the step asks, and where outputs are wrong."""
    result = evidence.comparison
    assert result is not None
    wrong = red_gate(result)
    if wrong:
        markup.notice(wrong, error=True)
    if not evidence.current:
        markup.notice(mismatch(result, settings))


def _nothing(settings: Settings) -> None:
    markup.empty(
        f"No run of {settings.model} yet",
        "No recording ships for it: run it live before the talk, or pick another.",
    )
    st.space("small")
