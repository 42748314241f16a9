"""Overview: is it worth it for my model?"""

from __future__ import annotations

import streamlit as st

from app import work
from app.components import charts, jobs, markup
from app.components.page import page
from app.evidence import PREDICTED, Evidence
from app.state import Settings
from app.words import cards, mismatch, predicted, provenance, red_gate, score_words, sentence, winners
from flashsvd.curve_set import points_table
from flashsvd.figures import theme
from flashsvd.figures.curve import curve as curve_figure
from flashsvd.figures.timeline import timeline
from flashsvd.results import Comparison, CurvePoint, Metric

_HEIGHT = 350


def render(settings: Settings, evidence: Evidence) -> None:
    """The sentence, four numbers, the memory timeline and what the rank costs."""
    result = evidence.comparison
    if result is None:
        _empty(settings, evidence)
        return
    markup.sentence(sentence(result, scoring=evidence.scoring), evidence.comparison_badge)
    wrong = red_gate(result)
    if wrong:
        markup.notice(wrong, error=True)
    if not evidence.current:
        line = mismatch(result, settings)
        if evidence.plan is not None:
            line += f" Your plan keeps {predicted(evidence.plan, None)} (PREDICTED)."
        markup.notice(line)
    markup.cards(cards(result, scoring=evidence.scoring))
    left, right = st.columns([65, 35], gap="small")
    with left, st.container(key="panel_timeline", height="stretch"):
        _timeline(result, evidence)
    with right, st.container(key="panel_curve", height="stretch"):
        _curve(settings, evidence)
    markup.muted(winners(result), "fs-foot")


def _timeline(result: Comparison, evidence: Evidence) -> None:
    mode = markup.mode()
    names = [run.engine for run in result.runs if not run.timeline.empty]
    if not names:
        markup.head("Memory while the model runs", "this run recorded no timeline")
        return
    title, pick = st.columns([62, 38], vertical_alignment="top", wrap=False)
    with pick, st.container(horizontal=True, horizontal_alignment="right"):
        preferred = "flash" if "flash" in names else names[-1]
        shown = st.segmented_control(
            "Engine", names, default=preferred, key="w_engine", label_visibility="collapsed", required=True
        )
    run = result.run(shown or preferred)
    assert run is not None
    colour = theme.engine_colour(run.engine, mode)
    with title:
        markup.head(
            "Memory while the model runs",
            "MiB beyond the weights · dashed: dense",
            evidence.comparison_badge,
            [(theme.faded(colour, 0.55), "activations"), (colour, "workspace")],
        )
    figure = timeline(
        run,
        len(result.model.shape.layers),
        ghost=result.run("dense"),
        mode=mode,
        height=_HEIGHT,
        source=provenance(result.machine, result.seed),
    )
    charts.chart(figure, key="timeline", name="Memory while the model runs", data=run.timeline)


def _curve(settings: Settings, evidence: Evidence) -> None:
    running = "curve" in work.active()
    trained = evidence.info is None or evidence.info.trained
    curve = evidence.curve
    badge = None if running or curve is None else evidence.curve_badge
    markup.head("What the rank costs", score_words(_scored(evidence)), badge)
    if running:
        st.fragment(_coming, run_every=1.0)(settings, evidence)
        jobs.panel("curve")
        return
    if not trained:
        markup.empty("No score here", "This model has random weights: it serves memory and speed.")
        return
    if curve is None:
        markup.empty("No curve yet", "Ten points, each the score of a compressed model on held-out text.")
    else:
        _draw_curve(evidence, ())
    st.button(
        "Compute the curve live" if curve is None else "Recompute live",
        key="run_curve",
        width="stretch",
        on_click=work.start,
        args=(settings.curve_request(),),
    )


def _scored(evidence: Evidence) -> Metric | None:
    """The dense score of what is on screen."""
    if evidence.curve is not None:
        return evidence.curve.dense
    dense = evidence.comparison.run("dense") if evidence.comparison else None
    return dense.metric if dense else None


def _coming(settings: Settings, evidence: Evidence) -> None:
    job = work.active().get("curve")
    _draw_curve(evidence, work.partial(job) if job else ())


def _draw_curve(evidence: Evidence, coming: tuple[CurvePoint, ...]) -> None:
    result = evidence.comparison
    flash, dense = (result.run("flash"), result.run("dense")) if result else (None, None)
    here = (result.keep, flash.metric) if result and flash and flash.metric else None
    curve = evidence.curve
    figure = curve_figure(
        curve,
        here=here,
        plan_keep=evidence.plan.keep if evidence.plan and not evidence.current else None,
        coming=coming,
        dense=dense.metric if dense else None,
        mode=markup.mode(),
        # The job's panel takes the rest while a curve is computed: the page keeps its height.
        height=_HEIGHT - (82 if "curve" in work.active() else 36),
        machine=curve.machine.label if curve else "",
    )
    data = points_table([curve]) if curve else None
    charts.chart(figure, key="curve", name="Score against keep", data=data)


def _empty(settings: Settings, evidence: Evidence) -> None:
    if evidence.problem and evidence.shape is None:
        return
    with st.container(key="panel_empty"):
        markup.empty(
            f"No run of {settings.model} yet",
            "No recording ships for it. Press Run live: dense, low-rank and FlashSVD run here on the same input, "
            "and the numbers appear in this place.",
        )
    if evidence.plan is not None:
        parameters = evidence.info.parameters if evidence.info else None
        with st.container(key="panel_predicted"):
            markup.head("Your plan", predicted(evidence.plan, parameters), PREDICTED)


page(render)
