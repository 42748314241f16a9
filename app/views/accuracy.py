"""Accuracy: what does rank cost?"""

from __future__ import annotations

import streamlit as st

from app import choices, echo, session, tradeoff_words, work
from app.components import charts, jobs, markup
from app.components.page import page
from app.components.segmented import segmented
from app.evidence import Evidence
from app.state import CURVE_KEEPS, Settings
from app.tradeoffs import OWN_SET, Known, known
from flashsvd.curve_set import CurvePart, CurvesRequest, points_table
from flashsvd.figures.pareto import pareto
from flashsvd.methods import methods
from flashsvd.results import Curve
from flashsvd.tradeoff import AXES, SCORES, Axis, Score, Spot, Tradeoff, tradeoff

_HEIGHT = 432
_ALLOCATORS = ("uniform", "energy", "calibrated", "asvd", "ars")
_CHART = "pareto"


def render(settings: Settings, evidence: Evidence) -> None:
    """The sentence, the picture of all methods, and what computes more of it."""
    found = known(settings)
    if found.problem:
        markup.notice(found.problem, error=True)
    task = _task(found)
    shown = _shown(found, task)
    words = tradeoff_words.sentence(shown, _titles())
    # A number and its unit stay on one line.
    markup.sentence([(text.replace(" %", "\u00a0%"), bold) for text, bold in words], found.badge(shown))
    _loaded()
    left, right = st.columns([73, 27], gap="small")
    with left, st.container(key="panel_pareto", height="stretch"):
        picture = _picture(settings, evidence, found, shown)
    with right, st.container(key="panel_compute", height="stretch"):
        _controls(settings, evidence, found, task)
        _front(picture)


def _titles() -> dict[str, str]:
    return {name: method.title for name, method in methods().items()}


def _task(found: Known) -> str | None:
    """The task on screen, None for the model's own set; one that a link names is shown, computed or not."""
    return choices.text("accuracy_task") or None


def _methods(found: Known, task: str | None) -> list[str]:
    """The methods that are shown and computed: those chosen, else all that have a curve."""
    wanted = [name for name in choices.text("accuracy_methods").split(",") if name in methods()]
    if wanted:
        return wanted
    there = {curve.method.partition(":")[0] for curve in found.of_task(task)}
    return [name for name in methods() if name in there] or list(methods())


def _allocators() -> list[str]:
    wanted = [name for name in choices.text("accuracy_ranks", "uniform").split(",") if name in _ALLOCATORS]
    return wanted or ["uniform"]


def _shown(found: Known, task: str | None) -> list[Curve]:
    wanted, allocators = _methods(found, task), _allocators()
    order = {name: index for index, name in enumerate(wanted)}
    curves = [
        curve
        for curve in found.of_task(task)
        if curve.method.partition(":")[0] in order and curve.allocator in allocators
    ]
    return sorted(curves, key=lambda curve: order[curve.method.partition(":")[0]])


def _picture(settings: Settings, evidence: Evidence, found: Known, shown: list[Curve]) -> Tradeoff | None:
    metric = shown[0].dense if shown else None
    names = tradeoff_words.score_names(metric)
    running = "curves" in work.active()
    axis: Axis = choices.chosen("accuracy_axis", AXES, AXES[0])  # type: ignore[assignment]
    score: Score = choices.chosen("accuracy_score", SCORES, SCORES[0])  # type: ignore[assignment]
    better = "lower is better" if score == "kl" or (metric and metric.lower_is_better) else "95 % intervals"
    markup.head(
        f"{names[score]} against {tradeoff_words.AXIS_NAMES[axis].lower()}",
        f"{better} · click a point to load its plan",
        found.badge(shown) if shown and not running else None,
    )
    with st.container(horizontal=True, horizontal_alignment="distribute", key="accuracy_axes"):
        segmented("accuracy_axis", AXES, tradeoff_words.AXIS_NAMES, "Against")
        segmented("accuracy_score", SCORES, names, "Score")
    if running:
        st.fragment(_coming, run_every=1.0)(settings, evidence, found, shown, axis, score)
        return None
    if not shown:
        _empty(settings, evidence, found)
        return None
    return _draw(settings, evidence, found, shown, axis, score, ())


def _coming(
    settings: Settings, evidence: Evidence, found: Known, shown: list[Curve], axis: Axis, score: Score
) -> None:
    job = work.active().get("curves")
    parts: tuple[CurvePart, ...] = work.partial(job) if job else ()
    _draw(settings, evidence, found, shown, axis, score, parts)


def _draw(
    settings: Settings,
    evidence: Evidence,
    found: Known,
    shown: list[Curve],
    axis: Axis,
    score: Score,
    coming: tuple[CurvePart, ...],
) -> Tradeoff:
    own = not choices.text("accuracy_task")
    result = tradeoff(
        shown,
        axis,
        score,
        dtype=settings.dtype,
        costs=found.costs,
        coming=coming,
        runs=found.runs if own else (),
        info=evidence.info,
    )
    here = (settings.method, evidence.plan.to_text()) if evidence.plan else None
    figure = pareto(result, axis, titles=_titles(), here=here, mode=markup.mode(), height=_HEIGHT)
    idle = "curves" not in work.active()
    charts.chart(
        figure,
        key=_CHART if idle else f"{_CHART}_coming",
        name="Score against cost",
        data=points_table(shown),
        **({"on_select": _picked, "selection_mode": "points"} if idle else {}),
    )
    lines = (
        tradeoff_words.left_out(result, axis, score, settings),
        tradeoff_words.measured_where(result, axis),
        tradeoff_words.precision(shown, settings),
    )
    markup.muted(" ".join(line for line in lines if line) or " ", "fs-foot")
    return result


def _empty(settings: Settings, evidence: Evidence, found: Known) -> None:
    if evidence.info is not None and not evidence.info.trained:
        markup.empty("No score here", "This model has random weights: it serves memory and speed.")
        return
    elsewhere = "; there are some of other choices of the panel beside" if found.curves else ""
    markup.empty(
        "No curve yet",
        f"Ten points for each method, each the score of {settings.model} compressed, on held-out text{elsewhere}. "
        "Press Compute curves: they appear here as they finish.",
    )


# The panel beside it


def _controls(settings: Settings, evidence: Evidence, found: Known, task: str | None) -> None:
    markup.head("Methods", "shown, and computed by the button")
    titles = _titles()
    st.session_state["w_accuracy_methods"] = _methods(found, task)
    st.multiselect(
        "Methods",
        list(titles),
        key="w_accuracy_methods",
        format_func=lambda name: titles[name],
        label_visibility="collapsed",
        on_change=echo.heard("w_accuracy_methods", _methods_changed),
    )
    first, second = st.columns(2, gap="xsmall", wrap=False)
    with first:
        st.session_state["w_accuracy_ranks"] = ",".join(_allocators())
        options = [*_ALLOCATORS, *(f"uniform,{name}" for name in _ALLOCATORS[1:])]
        st.selectbox(
            "Ranks by",
            options,
            key="w_accuracy_ranks",
            format_func=lambda names: names.replace(",", " + "),
            help="How ranks are shared out within a budget; uniform gives every unit the same keep.",
            on_change=choices.keep,
            args=("accuracy_ranks", "w_accuracy_ranks", "uniform"),
        )
    with second:
        _task_picker(found, task)
    st.session_state["w_accuracy_timed"] = _timed()
    st.checkbox(
        f"Time plans at {settings.batch} x {settings.seq}",
        key="w_accuracy_timed",
        help="Also measures latency and peak memory of every plan, at the batch and tokens of the sidebar.",
        on_change=choices.keep,
        args=("accuracy_timed", "w_accuracy_timed", "True"),
    )
    running = "curves" in work.active()
    untrained = evidence.info is not None and not evidence.info.trained
    if running:
        jobs.panel("curves")
    else:
        st.button(
            "Compute curves",
            key="run_curves",
            width="stretch",
            disabled=untrained,
            help="Random weights have no score." if untrained else None,
            on_click=work.start,
            args=(_request(settings, found, task),),
        )


def _timed() -> bool:
    return choices.chosen("accuracy_timed", ("True", "False"), "True") == "True"


def _methods_changed() -> None:
    choices.choose("accuracy_methods", ",".join(st.session_state["w_accuracy_methods"]))


def _task_picker(found: Known, task: str | None) -> None:
    options = [OWN_SET, *(name for name in found.tasks if name)]
    if task and task not in options:
        options.append(task)
    st.session_state["w_accuracy_task"] = task or OWN_SET
    st.selectbox(
        "Scored on",
        options,
        key="w_accuracy_task",
        accept_new_options=True,
        help="The model's own held-out set, or type a task: glue/sst2, wikitext-2, text:PATH of plain text, or a "
        ".csv, .jsonl or .parquet file with columns text and label. Compute curves then scores on it.",
        on_change=echo.heard("w_accuracy_task", _task_changed),
    )


def _task_changed() -> None:
    chosen = str(st.session_state["w_accuracy_task"] or OWN_SET).strip()
    choices.choose("accuracy_task", "" if chosen == OWN_SET else chosen)


def _request(settings: Settings, found: Known, task: str | None) -> CurvesRequest:
    return CurvesRequest(
        model=settings.model,
        keeps=CURVE_KEEPS,
        methods=tuple(_methods(found, task)),
        allocators=tuple(_allocators()),
        per_head=settings.per_head,
        dtype=settings.dtype,
        task=task,
        timed=(settings.batch, settings.seq) if _timed() else None,
    )


def _front(picture: Tradeoff | None) -> None:
    """The points of the front as a menu, for who does not click on charts."""
    if picture is None or not picture.front:
        return
    spots = [picture.spots[index] for index in picture.front]
    lines = {tradeoff_words.spot_line(spot, _titles()): spot for spot in spots}
    name = "KL" if spots[0].metric.name == "kl" else spots[0].metric.name
    markup.head("On the front", f"keep → {name}, {len(lines)} plans that no other beats")
    if st.session_state.get("w_accuracy_front") not in lines:
        st.session_state["w_accuracy_front"] = list(lines)[tradeoff_words.near_dense(spots, picture.dense)]
    chosen = st.selectbox("Plan", list(lines), key="w_accuracy_front", label_visibility="collapsed")
    if chosen in lines:
        spot = lines[chosen]
        st.button("Load this plan", key="load_front", width="stretch", on_click=_load, args=_about(spot))


# Loading a plan


def _about(spot: Spot) -> tuple[str, str, str]:
    even = spot.allocator == "uniform" and spot.asked_keep is not None
    return spot.method, spot.plan, f"{spot.asked_keep:g}" if even else ""


def _picked() -> None:
    """A click on a point of the chart."""
    points = st.session_state[_CHART]["selection"]["points"]
    about = next((point["customdata"] for point in points if point.get("customdata")), None)
    if about is not None:
        method, plan, _, asked = (about[str(i)] if isinstance(about, dict) else about[i] for i in range(4))
        _load(method, plan, asked)


def _load(method: str, plan: str, asked: str) -> None:
    """Makes a point's method and plan those of the controls; an even plan becomes the slider's keep."""
    before = session.settings()
    session.load_point(method, plan, float(asked) if asked else None)
    if session.settings() != before:
        st.session_state["accuracy_loaded"] = before, session.settings()


def _take_back() -> None:
    before, _ = st.session_state.pop("accuracy_loaded")
    session.update(method=before.method, keep=before.keep, plan=before.plan, per_head=before.per_head)


def _loaded() -> None:
    """What a click has loaded, with its undo, until the settings move on."""
    before, after = st.session_state.get("accuracy_loaded", (None, None))
    if before is None or after != session.settings():
        st.session_state.pop("accuracy_loaded", None)
        return
    now = session.settings()
    kept = f"keep {100 * now.keep:.0f} %" if now.plan is None else "its own ranks"
    words, back = st.columns([88, 12], vertical_alignment="center", wrap=False)
    with words:
        markup.notice(
            f"Loaded: {_titles()[now.method]}, {kept}. Run live measures it beside dense; Ranks shows it by layer."
        )
    with back:
        st.button("Undo", key="accuracy_undo", width="stretch", on_click=_take_back)


page(render)
