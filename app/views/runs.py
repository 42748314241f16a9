"""Runs: what did I try?"""

from __future__ import annotations

from app import choices, services
from app.components import markup, run_actions, run_compare, run_list
from app.components.page import page
from app.evidence import Evidence
from app.state import Settings
from flashsvd.errors import FlashSVDError


def render(settings: Settings, evidence: Evidence) -> None:
    """The list of kept runs, or two of them side by side."""
    try:
        store = services.store()
        pair = [store.row(number) for number in run_actions.picked()[:2]]
        a, b = pair if len(pair) == 2 else (None, None)
        if choices.text("runs_view") == "compare" and a is not None and b is not None:
            run_compare.show(store, a, b)
        else:
            run_list.show(store)
    except FlashSVDError as error:
        if str(error) != evidence.problem:
            markup.notice(str(error), error=True)
        markup.empty("Kept runs cannot be shown", "All other pages work; what runs now stays in its tab.")


page(render)
