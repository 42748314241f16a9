"""Two texts side by side, the tokens in which they differ, and how far apart two models are over one text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import groupby

import streamlit as st

from app.components import markup
from app.evidence import Badge
from app.words import Segment, percent
from flashsvd.classification.pair import ClassPair
from flashsvd.errors import format_bytes
from flashsvd.generation.agreement import differing, parting
from flashsvd.generation.pair import Place, Side, TextPair

NAMES = {"dense": "Dense", "flash": "Compressed"}
_LINES = 3
_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def sentence(pair: TextPair) -> list[Segment]:
    """What a person sees of the two texts, in one sentence."""
    place = parting(pair.dense.tokens, pair.compressed.tokens)
    if pair.agreement is None or pair.kl is None:
        dense, mine = (rate(side.steady_rate or side.cold_rate) for side in (pair.dense, pair.compressed))
        return [
            ("Random weights: dense writes ", False),
            (dense, True),
            (" tokens a second, compressed ", False),
            (mine, True),
            (".", False),
        ]
    if place is None:
        words: list[Segment] = [
            ("Both write ", False),
            (f"the same {_tokens(len(pair.dense.tokens))}", True),
        ]
    elif place == 0:
        words = [("They part at ", False), ("the first token", True)]
    else:
        words = [("They part after ", False), (_tokens(place), True)]
    return [
        *words,
        ("; over the dense text ", False),
        (percent(pair.agreement.value), True),
        (" of next tokens agree.", False),
    ]


def verdict(pair: ClassPair) -> list[Segment]:
    """What the two classifiers say, in one sentence."""
    first, second = pair.picked
    # A share and its sign stay on one line.
    mine, other = (percent(p).replace(" ", "\xa0") for p in (pair.dense[first], pair.compressed[second]))
    if first == second:
        return [
            ("Both say ", False),
            (pair.classes[first], True),
            (f": dense with {mine}, compressed with {other}.", False),
        ]
    return [
        ("Dense says ", False),
        (pair.classes[first], True),
        (f" ({mine}), compressed ", False),
        (pair.classes[second], True),
        (f" ({other}).", False),
    ]


def rate(value: float | None) -> str:
    """Tokens a second, with three digits at most.

    >>> rate(61.04), rate(461.2), rate(0.0449), rate(None)
    ('61.0', '461', '0.045', '–')
    """
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 1 else f"{value:.{0 if value >= 100 else 1}f}"


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def both(pair: TextPair, badge: Badge) -> None:
    """The two texts with their rates; tokens without a counterpart are marked."""
    marks = differing(pair.dense.tokens, pair.compressed.tokens)
    place = parting(pair.dense.tokens, pair.compressed.tokens)
    for column, side, marked in zip(
        st.columns(2, gap="small"), (pair.dense, pair.compressed), marks, strict=True
    ):
        with column, st.container(key=f"panel_generate_{side.engine}", height="stretch"):
            st.html(_side_head(side, badge))
            if side.pieces:
                st.html(text_html(pair.prompt, side.pieces, marked, place, side.engine))
            else:
                _speed(side)


def _side_head(side: Side, badge: Badge) -> str:
    step = side.step_ms
    hover = (
        f"steady: of the tokens after the first; cold: of the first, {side.first_seconds:.2f} s from weights in memory"
        + (f"; {step.p50:.1f} ms a token (p20 {step.p20:.1f}, p80 {step.p80:.1f})" if step else "")
    )
    return (
        f'<div class="fs-side"><div><div class="fs-head"><i class="fs-key fs-of-{side.engine}"></i>'
        f"{NAMES[side.engine]}{markup.badge(badge, short=True)}</div>"
        f'<div class="fs-sub">{_tokens(len(side.tokens))}, ended by {escape(side.ended)}</div></div>'
        f'<div class="fs-rate" title="{escape(hover)}"><b>{rate(side.steady_rate)}</b> tokens/s steady'
        f"<span>{rate(side.cold_rate)} cold</span></div></div>"
    )


def _speed(side: Side) -> None:
    """What there is to say of random weights."""
    step = side.step_ms
    markup.numbers(
        [
            (
                "A token, median",
                "–" if step is None else f"{step.p50:.1f} ms",
                "" if step is None else f"p20 {step.p20:.1f}, p80 {step.p80:.1f} ms",
            ),
            ("To the first token", f"{side.first_seconds:.2f} s", "packing, warming up, reading"),
            ("Weights", format_bytes(side.weight_bytes), "as the runtime holds them"),
            ("Keys and values", format_bytes(side.cache_bytes), "for the whole text"),
        ]
    )


def text_html(
    prompt: str, pieces: Sequence[str], marked: Sequence[bool], parts_at: int | None, engine: str
) -> str:
    """The end of a prompt and what was written after it. parts_at: the token at which the two texts part."""
    out = [f'<span class="p">{escape(end_of(prompt))}</span>']
    for start, stop, mark in _runs(marked, parts_at):
        if start == parts_at:
            out.append('<i class="fs-fork" title="here the two texts part"></i>')
        words = escape("".join(pieces[start:stop]))
        out.append(f"<mark>{words}</mark>" if mark else words)
    if parts_at is not None and parts_at == len(pieces):
        out.append('<i class="fs-fork" title="here the two texts part"></i>')
    return f'<div class="fs-text fs-of-{engine}" tabindex="0">{"".join(out)}</div>'


def plain_html(text: str, most: int) -> str:
    """A text alone, cut after so many characters."""
    cut = text if len(text) <= most else text[:most].rstrip() + " ⋯"
    return f'<div class="fs-text" tabindex="0">{escape(cut)}</div>'


def end_of(prompt: str) -> str:
    """The last lines of a prompt: the box is for what comes after it.

    >>> end_of("a\\nb\\nc\\nd\\ne"), end_of("a\\nb")
    ('⋯\\nc\\nd\\ne', 'a\\nb')
    """
    lines = prompt.split("\n")
    return prompt if len(lines) <= _LINES + 1 else "\n".join(["⋯", *lines[-_LINES:]])


def _runs(marked: Sequence[bool], parts_at: int | None) -> list[tuple[int, int, bool]]:
    """Neighbours that are marked alike, (first, one past the last, marked), cut where the texts part."""
    found: list[tuple[int, int, bool]] = []
    for (mark, _), group in groupby(
        range(len(marked)), lambda place: (marked[place], parts_at is not None and place >= parts_at)
    ):
        places = list(group)
        found.append((places[0], places[-1] + 1, mark))
    return found


def coming(prompt: str, texts: Mapping[str, str], ended: Collection[str]) -> None:
    """The two texts while they are written, by engine; `ended` are those that are whole."""
    words = "One after the other, so that each has the machine to itself"
    # As high as the sentence that will stand here.
    st.html(f'<div class="fs-sentence fs-soon">{words}</div>')
    for column, (engine, name) in zip(st.columns(2, gap="small"), NAMES.items(), strict=True):
        with column, st.container(key=f"panel_generate_{engine}", height="stretch"):
            st.html(coming_html(prompt, engine, name, texts.get(engine), engine in ended))


def coming_html(prompt: str, engine: str, name: str, text: str | None, ended: bool) -> str:
    """One text so far, None before there is any. The box keeps its end in view."""
    state = "waiting" if text is None else "written" if ended else "writing"
    caret = '<i class="fs-caret"></i>' if state == "writing" else ""
    shown = f'<span class="p">{escape(end_of(prompt))}</span>{escape(text or "")}{caret}'
    return (
        f'<div class="fs-side"><div><div class="fs-head"><i class="fs-key fs-of-{engine}"></i>{escape(name)}</div>'
        f'<div class="fs-sub">{state}</div></div></div>'
        f'<div class="fs-text live fs-of-{engine}{" waits" if state == "waiting" else ""}"><div>{shown}</div></div>'
    )


def strip(pair: TextPair, badge: Badge) -> None:
    """Every token of the dense text, shaded by how much the compressed model disagrees there."""
    agreement, kl = pair.agreement, pair.kl
    assert agreement is not None and kl is not None
    low, high = 100 * agreement.low, 100 * agreement.high
    words = (
        f"the compressed model, shown the dense text · same next token {percent(agreement.value)} of {agreement.n} "
        f"(95 %: {low:.0f} to {high:.0f}) · mean KL {kl.value:.2f} nats a token ({kl.low:.2f} to {kl.high:.2f})"
    )
    markup.head("Where it disagrees", words, badge)
    st.html(strip_html(pair.places))


def strip_html(places: Sequence[Place]) -> str:
    """The tokens, each with its card, and the key."""
    tokens = "".join(_token(place, number, len(places)) for number, place in enumerate(places, 1))
    return (
        f'<div class="fs-strip"><div class="fs-tokens">{tokens}</div><div class="fs-hint">'
        '<div><i style="--d:0%"></i><i style="--d:18%"></i><i style="--d:37%"></i><i style="--d:55%"></i> '
        "KL from 0 to 3 nats and more</div><div><u>underlined</u> another next token is likelier</div>"
        "<div>Point at a token, or step to it with Tab, for what the two models expected there.</div></div></div>"
    )


def shade(kl: float) -> float:
    """How strongly a token is shaded, from 0 to 1: close to linear for small KL, and full for very large.

    >>> shade(0.0), round(shade(0.1), 3), round(shade(3.0), 3)
    (0.0, 0.095, 0.95)
    """
    return 1 - math.exp(-kl)


def _token(place: Place, number: int, count: int) -> str:
    shown = escape(visible(place.piece))
    lines = "".join(
        _column(name, ranked) for name, ranked in (("dense", place.dense), ("flash", place.compressed))
    )
    # A line break of the text itself follows its sign.
    after = "\n" if place.piece.endswith("\n") else ""
    said = "the same next token" if place.agrees else "another next token"
    return (
        f'<span class="fs-tok{"" if place.agrees else " off"}" tabindex="0" style="--d:{55 * shade(place.kl):.0f}%">'
        f'{escape(_kept(place.piece))}<span class="fs-tip" role="tooltip"><span class="h"><b>{shown}</b>'
        f"<span>token {number} of {count}</span></span>"
        f'<span class="k">KL {place.kl:.2f} nats · {said}</span><span class="c">{lines}</span></span></span>{after}'
    )


def _column(engine: str, ranked: Sequence[tuple[str, float]]) -> str:
    rows = "".join(
        f'<span class="r"><span class="w">{escape(visible(piece))}</span><span>{100 * share:.1f} %</span>'
        f'<i style="width:{100 * share:.1f}%"></i></span>'
        for piece, share in ranked
    )
    return f'<span class="fs-of-{engine}"><span class="t">{NAMES[engine].lower()}</span>{rows}</span>'


def visible(piece: str) -> str:
    """A token as it stands alone: white space has signs.

    >>> visible(" lines"), visible("\\n\\n")
    ('␣lines', '↵↵')
    """
    return "".join(_SIGNS.get(sign, sign) for sign in piece)


def _kept(piece: str) -> str:
    """A token in its line: spaces stay, a line's end gets its sign.

    >>> _kept(" lines\\n")
    ' lines↵'
    """
    return piece.replace("\n", "↵")
