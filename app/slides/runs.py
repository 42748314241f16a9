"""What was tried: two picked runs side by side, one alone, or the list."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import streamlit as st

from app import services
from app.components import markup, run_actions, run_compare, run_list, run_words, slide_parts
from app.components.slide_parts import Look
from app.words import milliseconds, percent, when
from flashsvd.errors import FlashSVDError, format_bytes
from flashsvd.figures import theme
from flashsvd.figures.runs_curves import runs_curves
from flashsvd.results import Comparison, Curve
from flashsvd.runs.facts import main_engine
from flashsvd.runs.html import html_table, number_table, other_scores
from flashsvd.runs.rows import RunRow
from flashsvd.side_by_side import incomparable, numbers, shared_engines
from flashsvd.store import RunStore

_LISTED = 8


def show(look: Look) -> None:
    try:
        store = services.store()
        numbered = run_actions.picked(look.said)[:2]
        rows = [row for number in numbered if (row := store.row(number)) is not None and not row.deleted_at]
        if len(rows) < len(numbered):
            markup.notice("A run of this step is not kept here any more.")
        if len(rows) == 2 and rows[0].kind == rows[1].kind:
            _pair(look, store, rows[0], rows[1])
        elif rows:
            _alone(look, store, rows[0])
        else:
            _list(look, store.rows(_LISTED, run_list.wanted_of(look.said)))
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        slide_parts.numbers(look)


def _pair(look: Look, store: RunStore, first: RunRow, second: RunRow) -> None:
    a, b = run_compare.read(store, first), run_compare.read(store, second)
    lines = f'<div class="fs-pair">{run_compare.line("A", first)}{run_compare.line("B", second)}</div>'
    if isinstance(a, Comparison) and isinstance(b, Comparison):
        engines = shared_engines(a, b)
        if not engines:
            st.html(lines)
            markup.empty("No engine ran in both", "Pick two runs that share an engine, such as dense.")
            return
        engine = look.said.chosen("runs_engine", engines, main_engine(engines))
        _comparisons(a, b, engine, lines)
    elif isinstance(a, Curve) and isinstance(b, Curve):
        _curves(a, b, lines)


def _comparisons(a: Comparison, b: Comparison, engine: str, lines: str) -> None:
    rows = numbers(a, b, engine)
    warning = incomparable(a, b)
    if warning:
        markup.notice(warning)
    else:
        markup.sentence(run_words.pair_sentence(rows), None)
    st.html(lines)
    mine, theirs = a.run(engine), b.run(engine)
    assert mine is not None and theirs is not None
    left, right = st.columns([52, 48], gap="medium")
    with left:
        draw = functools.partial(slide_parts.chart, key="runs_memory")
        run_compare.memory(a, b, mine, theirs, 240, draw)
    with right:
        markup.head(f"Numbers of {engine}", "latencies are set against each other only if outputs agree")
        main = [row for row in rows if row.main]
        st.html(f'<div class="fs-runs">{number_table(main)}</div>')


def _curves(a: Curve, b: Curve, lines: str) -> None:
    if a.dense.name != b.dense.name:
        markup.notice(other_scores(a, b))
        return
    markup.sentence([("What the rank costs, twice", False)], None)
    st.html(lines)
    mode = markup.mode()
    colours = theme.palette(mode)
    markup.head(f"{a.dense.name}, 95 % intervals", "", None, [(colours.flash, "A"), (colours.text, "B")])
    slide_parts.chart(runs_curves(a, b, mode=mode, height=300), key="runs_curves", name="Two curves")


def _alone(look: Look, store: RunStore, row: RunRow) -> None:
    result, badge = run_compare.read(store, row), run_words.badge_of(row)
    if isinstance(result, Comparison):
        # It is what was picked, whatever the step's settings say.
        seen = dataclasses.replace(look.evidence, comparison=result, comparison_badge=badge, current=True)
        one = dataclasses.replace(look, evidence=seen)
        slide_parts.numbers(one)
        slide_parts.memory(one, 224)
    else:
        slide_parts.scores(look, result, badge)


def _list(look: Look, rows: Sequence[RunRow]) -> None:
    if not rows:
        slide_parts.numbers(look)
        return
    markup.sentence(_told(rows), None)
    table = [
        (
            row.title,
            row.method,
            "" if row.keep is None else percent(row.keep),
            run_words.input_words(row),
            "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            "" if row.median_ms is None else milliseconds(row.median_ms),
            run_words.score_words(row),
            when(row.created),
        )
        for row in rows
    ]
    head = ("Run", "Method", "Keep", "Input", "Peak", "Median", "Score", "Run on")
    st.html(f'<div class="fs-runs fs-list">{html_table(head, table)}</div>')


def _told(rows: Sequence[RunRow]) -> list[tuple[str, bool]]:
    """How many, and the least memory among them."""
    least = min((row for row in rows if row.peak_bytes), key=lambda row: row.peak_bytes or 0, default=None)
    words = [("The last ", False), (f"{len(rows)} runs" if len(rows) > 1 else "run", True)]
    if least is None or least.peak_bytes is None or len(rows) < 2:
        return words
    return [
        *words,
        ("; the least memory took ", False),
        (least.title, True),
        (f": {format_bytes(least.peak_bytes)}", False),
    ]
