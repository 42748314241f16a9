"""Small pieces of HTML. Everything that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import streamlit as st

from app.evidence import Badge
from app.words import Card, Segment

_STYLE = Path(__file__).resolve().parent.parent / "style.css"


def mode() -> str:
    """ "light" or "dark", as the browser shows it."""
    return "dark" if st.context.theme.type == "dark" else "light"


def style() -> None:
    """The style sheet, and a mark that tells it which theme is on."""
    st.html(_STYLE)
    st.html(f'<span class="fs-none fs-{mode()}" hidden></span>')


def brand() -> None:
    """The product's name, in the header."""
    with st.container(key="brand"):
        st.html('<div class="fs-brand">Flash<b>SVD</b></div>')


def badge(value: Badge, *, short: bool = False) -> str:
    """LIVE, REPLAY or PREDICTED with machine and date; short keeps those for the tooltip."""
    text = f"{value.kind} · {value.detail}" if value.detail else value.kind
    shown = value.kind if short else text
    return f'<span class="fs-badge fs-{value.kind}" title="{escape(text)}">{escape(shown)}</span>'


def sentence(segments: Sequence[Segment], value: Badge | None) -> None:
    """The page's first words, with their badge."""
    words = "".join(f"<b>{escape(text)}</b>" if stressed else escape(text) for text, stressed in segments)
    st.html(f'<div class="fs-sentence">{words} {badge(value) if value else ""}</div>')


def cards(items: Sequence[Card]) -> None:
    """Metric cards in one row."""
    st.html(f'<div class="fs-cards">{"".join(_card(item) for item in items)}</div>')


def _card(item: Card) -> str:
    words = "" if item.value[:1].isdigit() else " words"
    return (
        f'<div class="fs-card" title="{escape(item.hover)}"><div class="l">{escape(item.label)}</div>'
        f'<div class="v{words}">{escape(item.value)}</div>'
        f'<div class="n fs-{item.tone}" title="{escape(item.note)}">{escape(item.note)}</div>'
        f'<div class="bar"><i style="width:{100 * item.bar:.1f}%"></i></div></div>'
    )


def numbers(items: Sequence[tuple[str, str, str]]) -> None:
    """(label, value, note) side by side, without cards."""
    cells = "".join(
        f'<div class="fs-number"><div class="l">{escape(label)}</div><div class="v">{escape(value)}</div>'
        f'<div class="n">{escape(note)}</div></div>'
        for label, value, note in items
    )
    st.html(f'<div class="fs-numbers">{cells}</div>')


def head(title: str, sub: str = "", value: Badge | None = None, key: Sequence[tuple[str, str]] = ()) -> None:
    """A panel's title; `key` is a colour key of (colour, name)."""
    marks = "".join(
        f'<i class="fs-key" style="background:{colour}"></i>{escape(name)}' for colour, name in key
    )
    st.html(
        f'<div class="fs-head">{escape(title)}{badge(value, short=True) if value else ""}</div>'
        f'<div class="fs-sub">{escape(sub)}{marks}</div>'
    )


def notice(line: str, *, error: bool = False) -> None:
    """One line in a box."""
    st.html(f'<div class="fs-notice {"error" if error else "note"}" role="status">{escape(line)}</div>')


def slide_top(title: str, place: str) -> None:
    """A slide's first line: what it is about, and where in the talk it stands."""
    st.html(f'<div class="fs-slide-top"><span>{escape(title)}</span><span>{escape(place)}</span></div>')


def muted(text: str, css: str = "fs-muted") -> None:
    st.html(f'<div class="{css}">{escape(text)}</div>')


def empty(title: str, text: str) -> None:
    """What stands where there are no numbers yet."""
    st.html(f'<div class="fs-empty"><b>{escape(title)}</b>{escape(text)}</div>')


def measured(items: Sequence[tuple[str, str]], value: Badge) -> None:
    """A finished run in one line."""
    words = " · ".join(f'<b title="{escape(note)}">{escape(text)}</b>' for text, note in items)
    st.html(f'<div class="fs-foot">Measured {words} {badge(value)}</div>')
