"""Which numbers a page shows, and where they come from."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app import services, session, work
from app.state import Settings, answers
from app.words import when
from flashsvd.errors import FlashSVDError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.results import Comparison, Curve, ModelInfo

Kind = Literal["LIVE", "REPLAY", "PREDICTED", "COMPILED"]


Sigmas = Mapping[tuple[int, str], NDArray[np.float64]]
"""Singular values by layer and slot."""


@dataclass(frozen=True)
class Badge:
    """Where a number comes from."""

    kind: Kind
    detail: str = ""


PREDICTED = Badge("PREDICTED")


@dataclass(frozen=True)
class Evidence:
    """All that is known about the model on screen."""

    shape: ModelShape | None
    info: ModelInfo | None
    plan: RankPlan | None
    comparison: Comparison | None
    comparison_badge: Badge
    current: bool
    curve: Curve | None
    curve_badge: Badge
    sigmas: Sigmas
    problem: str | None
    scoring: bool = False
    """Whether the comparison is of a run that goes on, whose scores are still to come."""


def gather(settings: Settings) -> Evidence:
    """Looks in this tab's runs, the store, and the recording that ships. Never raises for a model that is missing."""
    problem: str | None = None
    shape: ModelShape | None = None
    recorded = stored = stored_curve = shown = None
    try:
        shown = session.shown()
        shape = services.described(settings.model)
        recorded = services.recording(settings.model)
        stored, stored_curve = _stored(settings.model)
    except (FlashSVDError, sqlite3.Error, OSError) as error:
        problem = str(error)
    live = [run for run in session.runs() if run.model.name == settings.model]
    candidates = [(run, _live(run)) for run in reversed(live)]
    if isinstance(shown, Comparison) and shown.model.name == settings.model:
        candidates.insert(0, (shown, _replay(shown)))
    if stored is not None:
        candidates.append((stored, _replay(stored)))
    if recorded is not None:
        candidates.append((recorded.comparison, _replay(recorded.comparison)))
    early = work.early_comparison()
    if early is not None and early.model.name == settings.model:
        candidates.insert(0, (early, _live(early)))
    info = candidates[0][0].model if candidates else None
    spectra = session.spectra(settings.model, settings.method, settings.per_head)
    if info is None and spectra is not None:
        info = spectra.model
    if shape is None and info is not None:
        shape = info.shape
    shape = settings.planned(shape) if shape else None
    plan: RankPlan | None = None
    if shape is not None:
        try:
            plan = settings.rank_plan(shape)
        except FlashSVDError as error:
            problem = str(error)
    chosen = next((pair for pair in candidates if answers(pair[0], settings, plan)), None)
    current = chosen is not None
    chosen = chosen or (candidates[0] if candidates else None)
    curve, curve_badge = _curve(settings, stored_curve, recorded.curve if recorded else None, shown)
    same_method = recorded is not None and recorded.comparison.method == settings.method
    sigmas = spectra.sigmas if spectra else recorded.sigmas if recorded and same_method else {}
    return Evidence(
        shape=shape,
        info=info,
        plan=plan,
        comparison=chosen[0] if chosen else None,
        comparison_badge=chosen[1] if chosen else PREDICTED,
        current=current,
        curve=curve,
        curve_badge=curve_badge,
        sigmas=_fitting(sigmas, shape),
        problem=problem,
        scoring=chosen is not None and chosen[0] is early,
    )


def _curve(
    settings: Settings, stored: Curve | None, recorded: Curve | None, shown: Comparison | Curve | None
) -> tuple[Curve | None, Badge]:
    live = [curve for curve in session.curves() if curve.model.name == settings.model]
    found = [(curve, _live(curve)) for curve in reversed(live)]
    found += [(curve, _replay(curve)) for curve in (stored, recorded) if curve is not None]
    if isinstance(shown, Curve) and shown.model.name == settings.model:
        found.insert(0, (shown, _replay(shown)))
    for curve, badge in found:
        if curve.method == settings.method:
            return curve, badge
    return None, PREDICTED


def _live(result: Comparison | Curve) -> Badge:
    return Badge("LIVE", result.machine.label)


def _replay(result: Comparison | Curve) -> Badge:
    return Badge("REPLAY", f"{result.machine.label} · {when(result.created)}")


def _stored(model: str) -> tuple[Comparison | None, Curve | None]:
    # Read once per tab: what other tabs store later must not change this page under its reader.
    cache = st.session_state.setdefault("stored", {})
    if model not in cache:
        store = services.store()
        compare, curve = store.latest("compare", model), store.latest("curve", model)
        cache[model] = (
            compare if isinstance(compare, Comparison) else None,
            curve if isinstance(curve, Curve) else None,
        )
    found: tuple[Comparison | None, Curve | None] = cache[model]
    return found


def _fitting(sigmas: Sigmas, shape: ModelShape | None) -> Sigmas:
    """The singular values, if they are of this shape's units; whole matrices have other ones than heads."""
    if shape is None or not all(
        len(sigmas.get((layer, slot.name), ())) == slot.units for layer, slot in shape
    ):
        return {}
    return sigmas
