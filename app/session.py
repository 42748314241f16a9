"""One tab's state: settings, undo, finished runs, notices. Plain data only, bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import streamlit as st

from app import choices, links, services
from app.state import Settings, from_query, settings_of, to_query
from flashsvd.curve_set import CostTable, CurveSet
from flashsvd.errors import FlashSVDError, PlanError
from flashsvd.methods import method_named, methods
from flashsvd.ranks import RankPlan
from flashsvd.results import Comparison, Curve, SpectraSummary, to_json
from flashsvd.runs.facts import digest_of

_MAX_UNDO = 50
_MAX_RUNS = 8
_MAX_CURVES = 40


def open_tab() -> Settings:
    """The settings of this tab, read from its URL the first time; the URL follows from then on."""
    if "settings" not in st.session_state:
        _restore()
    now = settings()
    wanted = address()
    if dict(st.query_params) != wanted:
        st.query_params.from_dict(wanted)
    return now


def whole_query(**longest: int) -> dict[str, str]:
    """Settings and choices, as they stand in an address that is not too long. longest: of `choices.to_query`."""
    return {**to_query(settings()), **choices.to_query(**longest)}


def address() -> dict[str, str]:
    """The page's query: settings and choices, or their hash where they are long."""
    whole = whole_query()
    try:
        return links.shortened(whole)
    except FlashSVDError as error:
        notify(str(error))
        return whole


def _restore() -> None:
    query, unread = dict(st.query_params), []
    try:
        query = links.expanded(query)
    except FlashSVDError as error:
        query, unread = {}, [f"{error}. Showing the defaults."]
    choices.restore(query)
    default = default_settings(query.get("model", Settings().model))
    wanted, problems = from_query(query, default, tuple(methods()))
    if wanted.plan is not None:
        try:
            shape = services.described(wanted.model)
            if shape is not None:
                plan = wanted.rank_plan(shape)
                wanted = dataclasses.replace(wanted, plan=plan.to_text())
        except PlanError as error:
            problems.append(f"The link's plan was not used: {error}. Showing keep {100 * wanted.keep:g} %.")
            wanted = dataclasses.replace(wanted, plan=None)
        except FlashSVDError:
            # The page says what is wrong with the model; the plan waits for a model that can be read.
            pass
    st.session_state["settings"] = wanted
    st.session_state["notices"] = unread + problems


def default_settings(model: str) -> Settings:
    """What the model's recording shows, so that a page opens with numbers that answer its controls."""
    try:
        recorded = services.recording(model)
    except FlashSVDError:
        recorded = None
    return Settings(model=model) if recorded is None else settings_of(recorded.comparison)


def settings() -> Settings:
    """What the controls say now."""
    found: Settings = st.session_state["settings"]
    return found


def update(**changes: Any) -> None:
    """Changes settings; a change of the plan can be undone."""
    now = settings()
    changed = dataclasses.replace(now, **changes)
    if changed == now:
        return
    if (changed.plan, changed.keep) != (now.plan, now.keep):
        # Only a step that changed the method takes it back.
        method = now.method if changed.method != now.method else None
        _stack("undo").append((now.plan, now.keep, now.per_head, method))
        del _stack("undo")[:-_MAX_UNDO]
        _stack("redo").clear()
    st.session_state["settings"] = changed


def set_plan(plan: RankPlan) -> None:
    """Makes a plan the canonical one."""
    per_head = any(slot.units > 1 for _, slot in plan.shape)
    update(plan=plan.to_text(), per_head=per_head)


def try_plan(make: Callable[[], RankPlan]) -> None:
    """Makes the plan that a rule gives the canonical one; where it gives none, a line says why."""
    try:
        set_plan(make())
    except FlashSVDError as error:
        notify(str(error))


def choose_model(model: str) -> None:
    """Another model: its own default settings, no plan of the old one, a fresh undo history."""
    now = settings()
    if model == now.model:
        return
    st.session_state["settings"] = dataclasses.replace(default_settings(model), method=now.method)
    _stack("undo").clear()
    _stack("redo").clear()


def choose_method(method: str) -> None:
    """Another method; no plan of the old one where the two share layers differently."""
    now = settings()
    if method_named(method).group == method_named(now.method).group:
        update(method=method)
    else:
        update(method=method, plan=None)


def load_point(method: str, plan: str, keep: float | None = None) -> None:
    """A point of a curve: its method and plan, in one step of undo. keep: of an even plan, for the slider."""
    name = method if method in methods() else method.partition(":")[0]
    if keep is None:
        update(method=name, plan=plan)
    else:
        update(method=name, plan=None, keep=keep)


def undo() -> None:
    _swap("undo", "redo")


def redo() -> None:
    _swap("redo", "undo")


def can(which: str) -> bool:
    """Whether there is something to "undo" or "redo"."""
    return bool(_stack(which))


def _swap(source: str, target: str) -> None:
    if not _stack(source):
        return
    now = settings()
    plan, keep, per_head, method = _stack(source).pop()
    _stack(target).append((now.plan, now.keep, now.per_head, method and now.method))
    st.session_state["settings"] = dataclasses.replace(
        now, plan=plan, keep=keep, per_head=per_head, method=method or now.method
    )


def _stack(name: str) -> list[tuple[str | None, float, bool, str | None]]:
    stack: list[tuple[str | None, float, bool, str | None]] = st.session_state.setdefault(f"{name}_stack", [])
    return stack


def notices() -> list[str]:
    """Lines to show once per problem; `dismiss` clears them."""
    lines: list[str] = st.session_state.setdefault("notices", [])
    return lines


def notify(line: str) -> None:
    if line not in notices():
        notices().append(line)


def dismiss() -> None:
    st.session_state["notices"] = []


def runs() -> list[Comparison]:
    """This tab's finished live runs, oldest first."""
    found: list[Comparison] = st.session_state.setdefault("runs", [])
    return found


def curves() -> list[Curve]:
    """This tab's finished curves, oldest first."""
    found: list[Curve] = st.session_state.setdefault("curves", [])
    return found


def cost_tables() -> list[CostTable]:
    """What plans took to run, as measured for this tab, oldest first."""
    found: list[CostTable] = st.session_state.setdefault("cost_tables", [])
    return found


def spectra(model: str, method: str, per_head: bool) -> SpectraSummary | None:
    """Singular values computed for this tab."""
    found: SpectraSummary | None = st.session_state.setdefault("spectra", {}).get((model, method, per_head))
    return found


def result_of(request: Any) -> Any:
    """What a job of this tab made of a request, of the kinds that are neither run, curve nor spectra; None before."""
    return st.session_state.setdefault("results", {}).get(request)


def show(result: Comparison | Curve, digest: str) -> None:
    """Puts a kept run on screen: its settings in the controls, its numbers until others are measured. The address
    names it by digest, so that it is there again after a restart."""
    now = settings()
    if isinstance(result, Comparison):
        wanted = settings_of(result)
    else:
        base = now if now.model == result.model.name else default_settings(result.model.name)
        per_head = result.model.shape.per_head
        wanted = dataclasses.replace(base, method=result.method, dtype=result.dtype, per_head=per_head)
        if (base.method, base.per_head) != (wanted.method, wanted.per_head):
            wanted = dataclasses.replace(wanted, plan=None)
    if wanted.model == now.model:
        update(**dataclasses.asdict(wanted))
    else:
        st.session_state["settings"] = wanted
        _stack("undo").clear()
        _stack("redo").clear()
    st.session_state["shown_run"] = (digest, result)
    choices.choose("runs_shown", digest)


def shown() -> Comparison | Curve | None:
    """The kept run that was put on screen last, if nothing was measured since and it is still kept."""
    digest = choices.text("runs_shown")
    if not digest:
        return None
    kept: tuple[str, Comparison | Curve | None] | None = st.session_state.get("shown_run")
    if kept is None or kept[0] != digest:
        try:
            row = services.store().find(digest)
            found = services.store().get(row.id) if row is not None and row.deleted_at is None else None
        except FlashSVDError:
            # What is wrong with the store is said where its newest runs are read.
            found = None
        kept = st.session_state["shown_run"] = (digest, found)
    return kept[1]


def store_changed(gone: Collection[str] = ()) -> None:
    """What this tab read from the store is read anew; its own results that are gone there, by digest, are dropped."""
    for name in ("stored", "stored_tradeoffs", "shown_run"):
        st.session_state.pop(name, None)
    if gone:
        runs()[:] = [run for run in runs() if digest_of(to_json(run)) not in gone]
        curves()[:] = [curve for curve in curves() if digest_of(to_json(curve)) not in gone]


def remember(result: Any, request: Any) -> None:
    """Keeps a finished result for this tab; of each sort the last few."""
    if isinstance(result, Comparison | Curve):
        choices.choose("runs_shown", "")
    if isinstance(result, Comparison):
        runs().append(result)
        del runs()[:-_MAX_RUNS]
    elif isinstance(result, Curve):
        curves().append(result)
        del curves()[:-_MAX_CURVES]
    elif isinstance(result, CurveSet):
        curves().extend(result.curves)
        del curves()[:-_MAX_CURVES]
        cost_tables().extend(result.costs)
        del cost_tables()[:-_MAX_RUNS]
    elif isinstance(result, SpectraSummary):
        _hold("spectra", (result.model.name, result.method, request.per_head), result)
    else:
        _hold("results", request, result)


def _hold(name: str, key: Any, result: Any) -> None:
    kept = st.session_state.setdefault(name, {})
    kept.pop(key, None)
    kept[key] = result
    while len(kept) > _MAX_RUNS:
        kept.pop(next(iter(kept)))
