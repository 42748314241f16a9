"""Every curve, run and measured cost that a tab knows of one model: live, from the store, and those that ship."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import streamlit as st

from app import services, session
from app.evidence import PREDICTED, Badge
from app.state import Settings
from app.words import when
from flashsvd.curve_set import CostTable
from flashsvd.errors import FlashSVDError
from flashsvd.results import Comparison, Curve
from flashsvd.tradeoff import cost_table

OWN_SET = "its own held-out set"
_MOST_STORED = 200
_MOST_READ = 12


@dataclass(frozen=True)
class Known:
    """curves: the newest of each method, allocator and task, at the controls' choice of heads. costs, runs: of the
    controls' batch, length and precision. origin: each curve's badge. problem: what could not be read.
    """

    curves: tuple[Curve, ...]
    badges: dict[str, Badge]
    costs: tuple[CostTable, ...]
    runs: tuple[Comparison, ...]
    problem: str | None = None

    def of_task(self, task: str | None) -> tuple[Curve, ...]:
        return tuple(curve for curve in self.curves if curve.task == task)

    @property
    def tasks(self) -> list[str | None]:
        return list(dict.fromkeys(curve.task for curve in self.curves))

    def badge(self, curves: Iterable[Curve]) -> Badge:
        """One badge for several curves: LIVE only where all are; of replayed ones machine and date of the newest."""
        found = [self.badges[curve.created + curve.method] for curve in curves]
        replayed = [badge for badge in found if badge.kind == "REPLAY"]
        return (replayed or found or [PREDICTED])[0]


def known(settings: Settings) -> Known:
    """Never raises for what is missing or cannot be read."""
    problem: str | None = None
    stored_curves: tuple[Curve, ...] = ()
    stored_runs: tuple[Comparison, ...] = ()
    stored_costs: tuple[CostTable, ...] = ()
    shipped_curves: list[Curve] = []
    shipped_costs: tuple[CostTable, ...] = ()
    shipped_runs: list[Comparison] = []
    try:
        stored_curves, stored_runs, stored_costs = _stored(settings)
        shipped = services.recorded_curves(settings.model)
        if shipped is not None:
            shipped_curves, shipped_costs = list(shipped.curves), shipped.costs
        recorded = services.recording(settings.model)
        if recorded is not None:
            shipped_runs.append(recorded.comparison)
            if recorded.curve is not None:
                shipped_curves.append(recorded.curve)
    except (FlashSVDError, sqlite3.Error, OSError) as error:
        problem = str(error)
    live = [curve for curve in reversed(session.curves()) if curve.model.name == settings.model]
    found: dict[tuple[str, str, str | None], Curve] = {}
    badges: dict[str, Badge] = {}
    for curve in (*live, *stored_curves, *shipped_curves):
        if curve.model.shape.per_head != settings.per_head:
            continue
        if found.setdefault((curve.method, curve.allocator, curve.task), curve) is curve:
            badges[curve.created + curve.method] = _badge(curve, live=any(curve is one for one in live))
    mine = [run for run in reversed(session.runs()) if _fits(run, settings)]
    # The shipped run is a point of the controls' defaults, and its curve is there already.
    runs = (*mine, *(run for run in stored_runs if run not in mine))
    tables = [table for table in reversed(session.cost_tables()) if _same(table, settings)]
    tables += [table for run in mine if (table := cost_table(run))]
    tables += [table for table in (*stored_costs, *shipped_costs) if _same(table, settings)]
    others = (run for run in (*stored_runs, *shipped_runs) if _fits(run, settings))
    tables += [table for run in others if (table := cost_table(run))]
    return Known(tuple(found.values()), badges, tuple(tables), runs, problem)


def _badge(curve: Curve, *, live: bool) -> Badge:
    if live:
        return Badge("LIVE", curve.machine.label)
    return Badge("REPLAY", f"{curve.machine.label} · {when(curve.created)}")


def _fits(run: Comparison, settings: Settings) -> bool:
    wanted = (settings.model, settings.batch, settings.seq, settings.dtype)
    return (run.model.name, run.batch, run.seq, run.dtype) == wanted


def _same(table: CostTable, settings: Settings) -> bool:
    wanted = (settings.model, settings.per_head, settings.batch, settings.seq, settings.dtype)
    return (table.model, table.per_head, table.batch, table.seq, table.dtype) == wanted


_Stored = tuple[tuple[Curve, ...], tuple[Comparison, ...], tuple[CostTable, ...]]


def _stored(settings: Settings) -> _Stored:
    """Newest first. Read once per tab: what other tabs store later must not change this page under its reader."""
    key = (settings.model, settings.batch, settings.seq, settings.dtype)
    cache = st.session_state.setdefault("stored_tradeoffs", {})
    if key not in cache:
        from flashsvd.runs.rows import Wanted

        store = services.store()
        rows = store.rows(_MOST_STORED, Wanted(model=settings.model))
        rows.sort(key=lambda row: -row.id)
        curves = [store.get(row.id) for row in rows if row.kind == "curve"]
        wanted = [row for row in rows if row.kind == "compare" and (row.batch, row.seq, row.dtype) == key[1:]]
        runs = [store.get(row.id) for row in wanted[:_MOST_READ]]
        while len(cache) > _MOST_READ:
            cache.pop(next(iter(cache)))
        cache[key] = (
            tuple(curve for curve in curves if isinstance(curve, Curve)),
            tuple(run for run in runs if isinstance(run, Comparison)),
            tuple(store.costs(settings.model)),
        )
    found: _Stored = cache[key]
    return found
