"""The points of a model's curves that no other beats, as a menu of plans."""

from __future__ import annotations

import streamlit as st

from app import choices, session, tradeoff_words, tradeoffs
from app.components import markup
from app.state import Settings
from flashsvd.errors import format_bytes
from flashsvd.figures.theme import MIB
from flashsvd.methods import methods
from flashsvd.results import Curve
from flashsvd.tradeoff import Spot, tradeoff

_ROW_PX, _MOST_PX = 43, 320


def front_menu(settings: Settings) -> None:
    """The popover; what it lists is scored on the task of the page Accuracy, or on the model's own set."""
    found = tradeoffs.known(settings)
    curves = found.of_task(choices.text("accuracy_task") or None) or found.of_task(None)
    spots = _front(curves, settings)
    reason = None if spots else "No curve of this model yet: compute some on the page Accuracy."
    with st.popover("Pareto front", disabled=not spots, help=reason), st.container(width=340):
        if not spots:
            return
        markup.head("From the Pareto front", f"{len(spots)} plans that no other beats", found.badge(curves))
        height = min(_MOST_PX, _ROW_PX * len(spots) + 8)
        with st.container(height=height, border=False, gap="xsmall", key="front_menu"):
            for number, spot in enumerate(spots):
                st.button(
                    f"{tradeoff_words.spot_line(spot, _titles())} · {format_bytes(spot.x * MIB)}",
                    key=f"preset_front_{number}",
                    width="stretch",
                    help=f"{spot.allocator} ranks, {spot.machine}",
                    on_click=session.load_point,
                    args=(spot.method, spot.plan, spot.asked_keep if spot.allocator == "uniform" else None),
                )


def _front(curves: tuple[Curve, ...], settings: Settings) -> list[Spot]:
    """By bytes of weights, smallest first."""
    found = tradeoff(curves, "weights", "score", dtype=settings.dtype)
    return [found.spots[index] for index in found.front]


def _titles() -> dict[str, str]:
    return {name: method.title for name, method in methods().items()}
