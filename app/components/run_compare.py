"""Two kept runs side by side, aligned by layer and op."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from app import choices
from app.components import charts, markup, run_actions, run_files, run_words
from app.components.segmented import segmented
from app.words import percent, provenance
from flashsvd.figures import theme
from flashsvd.figures.runs_curves import runs_curves
from flashsvd.figures.runs_latency import runs_latency
from flashsvd.figures.runs_memory import runs_memory
from flashsvd.figures.runs_ranks import runs_ranks
from flashsvd.results import Comparison, Curve, EngineRun
from flashsvd.runs.facts import main_engine
from flashsvd.runs.html import number_table, other_scores
from flashsvd.runs.rows import RunRow
from flashsvd.side_by_side import (
    by_layer_and_op,
    incomparable,
    numbers,
    rank_cells,
    shared_engines,
)
from flashsvd.store import RunStore

_BELOW = ("latency", "ranks")
_BESIDE = ("numbers", "ops")
_TITLES = {"latency": "Latency", "ranks": "Ranks", "numbers": "Numbers", "ops": "By layer and op"}
"""All of it at once would not fit a screen."""


def show(store: RunStore, a: RunRow, b: RunRow) -> None:
    """The comparison of two runs of one kind."""
    one, other = read(store, a), read(store, b)
    both = isinstance(one, Comparison) and isinstance(other, Comparison)
    engines = shared_engines(one, other) if both else ()  # type: ignore[arg-type]
    engine = _bar(store, a, b, engines)
    st.html(f'<div class="fs-pair">{line("A", a)}{line("B", b)}</div>')
    if isinstance(one, Comparison) and isinstance(other, Comparison):
        _comparisons(one, other, (a, b), engines, engine)
    elif isinstance(one, Curve) and isinstance(other, Curve):
        _curves(one, other)
    else:
        markup.empty("A comparison and a curve have nothing in common", "Pick two runs of one kind.")


def read(store: RunStore, row: RunRow) -> Comparison | Curve:
    """A kept run. It never changes, so every tab may share it; nobody alters it."""
    return _read(str(store.path), row.id, row.digest, store)


@st.cache_resource(show_spinner=False, max_entries=12)
def _read(path: str, number: int, digest: str, _store: RunStore) -> Comparison | Curve:
    return _store.get(number)


def _bar(store: RunStore, a: RunRow, b: RunRow, engines: tuple[str, ...]) -> str:
    chosen = choices.chosen("runs_engine", engines, main_engine(engines)) if engines else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs_top"):
        st.button("← All runs", key="runs_back", on_click=choices.choose, args=("runs_view", "list", "list"))
        st.html('<div class="fs-title">Two runs side by side</div>', width="content")
        st.space("stretch")
        if engines:
            st.session_state["w_runs_engine"] = chosen
            st.segmented_control(
                "Engine",
                engines,
                key="w_runs_engine",
                label_visibility="collapsed",
                required=True,
                on_change=choices.keep,
                args=("runs_engine", "w_runs_engine"),
            )
        st.button("Swap", key="runs_swap", on_click=run_actions.pick, args=((b.id, a.id),))
        run_files.take(store, (a, b), picked=True)
    return chosen


def line(letter: str, row: RunRow) -> str:
    """Which run a letter stands for, as HTML."""
    kept = "" if row.keep is None else f", keep {percent(row.keep)}"
    size = "" if row.batch is None else f", {row.batch} x {row.seq}"
    about = f"{row.model}, {row.method}{kept}{size}, {row.dtype}"
    return (
        f'<div><b>{letter}</b> <span class="t">{escape(row.title)}</span> <span class="fs-muted">{escape(about)}'
        f"</span>{markup.badge(run_words.badge_of(row))}</div>"
    )


def _comparisons(
    a: Comparison, b: Comparison, rows: tuple[RunRow, RunRow], engines: tuple[str, ...], engine: str
) -> None:
    warning = incomparable(a, b)
    if warning:
        markup.notice(warning)
    if not engines:
        markup.empty("No engine ran in both", "Pick two runs that share an engine, such as dense.")
        return
    mine, theirs = a.run(engine), b.run(engine)
    assert mine is not None and theirs is not None
    left, right = st.columns([56, 44], gap="small")
    with left:
        with st.container(key="panel_runs_memory"):
            memory(a, b, mine, theirs, 196, functools.partial(charts.chart, key="runs_memory"))
        with st.container(key="panel_runs_below", height="stretch"):
            if segmented("runs_below", _BELOW, _TITLES, "Below the memory") == "ranks":
                _ranks(a, b)
            else:
                _latency(a, b, engines)
    with right, st.container(key="panel_runs_numbers", height="stretch"):
        if segmented("runs_beside", _BESIDE, _TITLES, "Beside the memory") == "ops":
            _ops(mine, theirs)
        else:
            markup.head(f"Numbers of {engine}", "latencies are set against each other only if outputs agree")
            st.html(f'<div class="fs-runs">{number_table(numbers(a, b, engine))}</div>')


def memory(
    a: Comparison,
    b: Comparison,
    mine: EngineRun,
    theirs: EngineRun,
    height: int,
    draw: Callable[..., Any],
) -> None:
    """Memory of one engine in both runs. draw: puts the figure on a page or a slide, with its name and data."""
    mode = markup.mode()
    colour = theme.engine_colour(mine.engine, mode)
    markup.head(
        "Memory while the model runs",
        "MiB beyond the weights",
        None,
        [(theme.faded(colour, 0.55), "A"), (theme.palette(mode).text, "B")],
    )
    if mine.timeline.empty and theirs.timeline.empty:
        markup.muted("Neither run holds a timeline.")
        return
    figure = runs_memory(
        mine,
        theirs,
        (len(a.model.shape.layers), len(b.model.shape.layers)),
        mode=mode,
        height=height,
        sources=(provenance(a.machine, a.seed), provenance(b.machine, b.seed)),
    )
    data = pd.concat([mine.timeline.assign(run="A"), theirs.timeline.assign(run="B")], ignore_index=True)
    draw(figure, name="Memory of two runs", data=data)


def _latency(a: Comparison, b: Comparison, engines: tuple[str, ...]) -> None:
    markup.head("Latency", "median, 20 % and 80 % quantiles · filled: A, open: B")
    figure = runs_latency(a, b, engines, mode=markup.mode(), height=48 + 33 * len(engines))
    data = pd.DataFrame(
        [
            (letter, run.engine, run.latency_ms.p20, run.latency_ms.p50, run.latency_ms.p80, run.repeats)
            for letter, result in (("A", a), ("B", b))
            for run in result.runs
            if run.engine in engines
        ],
        columns=["run", "engine", "p20_ms", "p50_ms", "p80_ms", "repeats"],
    )
    charts.chart(figure, key="runs_latency", name="Latency of two runs", data=data)


def _ranks(a: Comparison, b: Comparison) -> None:
    cells = rank_cells(a.plan, b.plan)
    mode = markup.mode()
    colours = theme.palette(mode)
    if not cells:
        markup.head("Ranks where the plans differ")
        words = (
            "The two plans are the same."
            if cells is not None
            else "The models differ, and so do their layers."
        )
        markup.muted(words)
        return
    shape = a.plan.shape
    units = sum(1 for _ in shape)
    markup.head(
        "Ranks where the plans differ",
        f"{len(cells)} of {units} · A → B",
        None,
        [(colours.flash, "B keeps more"), (colours.lowrank, "B keeps less")],
    )
    slots = shape.slot_names
    figure = runs_ranks(cells, len(shape.layers), slots, mode=mode, height=52 + 20 * len(slots))
    data = pd.DataFrame(
        [(cell.layer + 1, cell.slot, cell.a, cell.b, cell.a_share, cell.b_share) for cell in cells],
        columns=["layer", "projection", "a_ranks", "b_ranks", "a_kept_share", "b_kept_share"],
    )
    charts.chart(figure, key="runs_ranks", name="Ranks that differ", data=data)


def _ops(mine: EngineRun, theirs: EngineRun) -> None:
    table = by_layer_and_op(mine, theirs)
    markup.head("By layer and op", "highest memory beyond the weights, largest differences first")
    if table.empty:
        markup.muted("Neither run holds a timeline.")
        return
    shown = pd.DataFrame(
        {
            "layer": ["outside" if layer == 0 else f"L{layer}" for layer in table["layer"]],
            "op": table["op"],
            "A": table["a_bytes"] / theme.MIB,
            "B": table["b_bytes"] / theme.MIB,
            "B − A": table["difference_bytes"] / theme.MIB,
        }
    )
    mib = {name: st.column_config.NumberColumn(f"{name} MiB", format="%.2f") for name in ("A", "B", "B − A")}
    st.dataframe(
        shown,
        key="runs_ops",
        hide_index=True,
        height=404,
        row_height=28,
        column_config={**mib, "layer": st.column_config.TextColumn(width=64)},
        alt="Highest memory of both runs by layer and op",
    )


def _curves(a: Curve, b: Curve) -> None:
    with st.container(key="panel_runs_curves"):
        mode = markup.mode()
        colours = theme.palette(mode)
        if a.dense.name != b.dense.name:
            markup.notice(other_scores(a, b))
            return
        if (a.model.name, a.dense.n, a.dense.seed) != (b.model.name, b.dense.n, b.dense.seed):
            markup.notice("Not comparable: the two were scored on other models or other samples.")
        markup.head(
            "What the rank costs",
            f"{a.dense.name}, 95 % intervals",
            None,
            [(colours.flash, "A"), (colours.text, "B")],
        )
        data = pd.DataFrame(
            [
                (letter, point.keep, point.metric.value, point.metric.low, point.metric.high, point.metric.n)
                for letter, curve in (("A", a), ("B", b))
                for point in curve.points
            ],
            columns=["run", "keep", "score", "low", "high", "n"],
        )
        figure = runs_curves(a, b, mode=mode, height=420)
        charts.chart(figure, key="runs_curves", name="Two curves", data=data)
