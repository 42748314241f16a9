"""One of a few options in a row, kept in the page's address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import choices


def segmented(name: str, options: Sequence[str], words: Mapping[Any, str], label: str) -> str:
    """Returns what is chosen. name: of the choice, which `choices.chosen` reads; the first option is the default.
    label: for screen readers."""
    key = f"w_{name}"
    chosen = st.session_state[key] = choices.chosen(name, options, options[0])
    st.segmented_control(
        label,
        options,
        key=key,
        format_func=lambda option: words[option],
        label_visibility="collapsed",
        required=True,
        on_change=choices.keep,
        args=(name, key, options[0]),
    )
    return chosen
