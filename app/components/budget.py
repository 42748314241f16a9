"""A budget of parameters or bytes, and the plan that a search makes of it."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from app import session, work
from app.components import jobs, markup
from app.evidence import Sigmas
from app.state import Settings
from app.words import count, weight_bytes
from flashsvd.allocate import Budget, Costs
from flashsvd.allocate.amounts import parse_bytes, parse_count
from flashsvd.allocate.within import least_cut
from flashsvd.errors import FlashSVDError
from flashsvd.jobs.kinds.search import FoundPlan, SearchRequest
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan, bytes_of

_BY: dict[str, str] = {
    "energy": "least σ² cut off: at once, from the spectra",
    "calibrated": "least expected KL: the worker runs the model",
}


def budget(shape: ModelShape, settings: Settings, sigmas: Sigmas, parameters: int | None) -> None:
    """The popover. parameters: of the whole model; a budget is for the factored weights where they are not known."""
    with st.popover("budget…"), st.container(width=330):
        dense = parameters or shape.dense_parameters
        of = "the whole model" if parameters else "the factored weights"
        st.caption(
            f"The best ranks with which {of} takes at most this much. "
            f"Dense it has {count(dense)} parameters, {weight_bytes(dense, settings.dtype)} in {settings.dtype}."
        )
        st.text_input(
            "At most",
            key="w_budget",
            placeholder="such as 3.5M, 60 % or 12 MB",
            help="Parameters as 3.5M or 1.2B; bytes as 12MB or 2GiB; or a share of dense, as 60 %.",
        )
        # Without spectra only the worker can search.
        options = [name for name in _BY if name != "energy" or sigmas]
        by = st.selectbox("By", options, key="w_budget_by", format_func=_BY.__getitem__)
        st.button(
            "Find the plan",
            key="budget_find",
            type="primary",
            width="stretch",
            disabled="search" in work.active(),
            on_click=_find,
            args=(shape, settings, sigmas, parameters, by),
        )


def found() -> None:
    """The search's progress, then what it found: made the plan as soon as it comes."""
    jobs.panel("search")
    request = st.session_state.get("search_wanted")
    result = None if request is None else session.result_of(request)
    if isinstance(result, FoundPlan):
        del st.session_state["search_wanted"]
        session.set_plan(result.plan)
        st.session_state["search_found"] = (result.plan.to_text(), _words(result))
        st.rerun()
    text, words = st.session_state.get("search_found", (None, ""))
    if text is not None and text == session.settings().plan:
        markup.muted(words, "fs-foot")


def _find(
    shape: ModelShape, settings: Settings, sigmas: Sigmas, parameters: int | None, by: str | None
) -> None:
    typed = st.session_state.get("w_budget") or ""
    try:
        kind, amount = read_amount(typed, parameters or shape.dense_parameters)
        if by == "energy":
            fixed = (parameters or shape.dense_parameters) - shape.dense_parameters
            session.set_plan(within(shape, sigmas, kind, amount, fixed, settings.dtype))
            return
    except FlashSVDError as error:
        session.notify(f"Budget: {error}")
        return
    request = SearchRequest(
        settings.model,
        kind,
        amount,
        method=settings.method,
        per_head=settings.per_head,
        dtype=settings.dtype,
    )
    st.session_state["search_wanted"] = request
    work.start(request)


def read_amount(text: str, dense: int) -> tuple[Literal["parameters", "bytes"], float]:
    """Parameters or bytes from what a person typed; a share is one of `dense` parameters.

    >>> read_amount("60 %", 1000), read_amount("12MB", 1000)
    (('parameters', 600.0), ('bytes', 12000000.0))

    Raises:
        InputError: neither.
    """
    word = text.strip()
    if word.endswith("%"):
        return "parameters", parse_count(word.removesuffix("%"), "a share") / 100 * dense
    # A bare B means billions of parameters: who means bytes writes a multiple of them.
    if word.lower().endswith(("kb", "mb", "gb", "tb", "ib")):
        return "bytes", parse_bytes(word, "the amount")
    return "parameters", parse_count(word, "the amount")


def within(
    shape: ModelShape,
    sigmas: Sigmas,
    kind: Literal["parameters", "bytes"],
    amount: float,
    fixed: int,
    dtype: str,
) -> RankPlan:
    """The plan of least tail energy; fixed: parameters of the model that are not factored.

    Raises:
        PlanError: nothing fits.
    """
    if kind == "bytes":
        return least_cut(shape, sigmas, Budget(kind, amount, bytes_of(fixed, dtype)), Costs.bytes(dtype))
    return least_cut(shape, sigmas, Budget(kind, amount, fixed), Costs.parameters())


def _words(result: FoundPlan) -> str:
    request_kl = "" if result.kl is None else f" · expected KL to dense {result.kl:.4f}"
    even = "" if result.uniform_kl is None else f", uniform {result.uniform_kl:.4f}"
    return f"Found in {result.seconds:.0f} s by {result.chosen}{request_kl}{even}, on held-out text"
