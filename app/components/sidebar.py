"""The controls: model, method, keep, input, precision, and the one primary button."""

from __future__ import annotations

import streamlit as st

from app import echo, session, work
from app.components import jobs, markup
from app.components.share import share
from app.evidence import Evidence
from app.state import DTYPES, Settings
from app.words import count, percent
from flashsvd.methods import methods
from flashsvd.models.sources import catalogue, streams


def sidebar(settings: Settings, evidence: Evidence) -> None:
    """Widgets show the settings and change them by callback: the settings are the only truth."""
    with st.sidebar:
        _model(settings)
        _method(settings)
        _keep(settings, evidence)
        _input(settings)
        _precision(settings)
        running = "compare" in work.active()
        st.button(
            "Run live",
            key="run_live",
            type="primary",
            width="stretch",
            # Not Ctrl+Enter, which already applies the typed plan: one press must not do both.
            shortcut="Alt+Enter",
            disabled=running,
            on_click=work.start_compare,
        )
        jobs.panel("compare")
        share(settings, evidence)


def _model(settings: Settings) -> None:
    names = [source.name for source in catalogue() if streams(source)]
    if settings.model not in names:
        names.insert(0, settings.model)
    st.session_state["w_model"] = settings.model
    st.selectbox(
        "Model",
        names,
        key="w_model",
        accept_new_options=True,
        help="Pick one, or type a folder or a hub id and press Enter.",
        on_change=echo.heard(
            "w_model", lambda: session.choose_model((st.session_state["w_model"] or settings.model).strip())
        ),
    )


def _method(settings: Settings) -> None:
    known = methods()
    st.session_state["w_method"] = settings.method
    st.selectbox(
        "Method",
        sorted(known),
        key="w_method",
        format_func=lambda name: known[name].title,
        help=known[settings.method].source,
        on_change=echo.heard("w_method", lambda: session.choose_method(st.session_state["w_method"])),
    )


def _keep(settings: Settings, evidence: Evidence) -> None:
    plan = evidence.plan
    keep = plan.keep if settings.plan is not None and plan is not None else settings.keep
    echo.show("w_keep", min(100, max(1, round(100 * keep))))
    st.slider(
        "Keep",
        1,
        100,
        key="w_keep",
        format="%d %%",
        help="Share of the factored weights' parameters that is kept. Moving it gives every unit the same share.",
        on_change=_keep_changed,
    )
    if plan is not None:
        kind = "of the factored weights" if settings.plan is None else "of the factored weights, own plan"
        whole = plan.shape.dense_parameters
        markup.muted(
            f"{percent(plan.keep)} {kind} · {count(plan.kept_parameters)} of {count(whole)}",
            "fs-foot fs-keep",
        )


def _keep_changed() -> None:
    if not echo.is_echo("w_keep"):
        session.update(keep=st.session_state["w_keep"] / 100, plan=None)


def _input(settings: Settings) -> None:
    left, right = st.columns(2, gap="xsmall", wrap=False)
    st.session_state["w_batch"], st.session_state["w_seq"] = settings.batch, settings.seq
    with left:
        st.number_input(
            "Batch",
            1,
            65_536,
            key="w_batch",
            on_change=echo.heard("w_batch", lambda: session.update(batch=st.session_state["w_batch"])),
        )
    with right:
        st.number_input(
            "Tokens",
            1,
            65_536,
            key="w_seq",
            on_change=echo.heard("w_seq", lambda: session.update(seq=st.session_state["w_seq"])),
        )


def _precision(settings: Settings) -> None:
    left, right = st.columns(2, gap="xsmall", wrap=False)
    st.session_state["w_dtype"] = settings.dtype
    st.session_state["w_heads"] = "per head" if settings.per_head else "whole"
    with left:
        st.selectbox(
            "Precision",
            DTYPES,
            key="w_dtype",
            on_change=echo.heard("w_dtype", lambda: session.update(dtype=st.session_state["w_dtype"])),
        )
    with right:
        st.selectbox(
            "q, k, v",
            ("per head", "whole"),
            key="w_heads",
            help="One SVD for each head of q, k and v, or one for each whole matrix.",
            on_change=echo.heard("w_heads", _heads_changed),
        )


def _heads_changed() -> None:
    # Ranks of heads say nothing about whole matrices: a plan made for one is not kept for the other.
    session.update(per_head=st.session_state["w_heads"] == "per head", plan=None)
