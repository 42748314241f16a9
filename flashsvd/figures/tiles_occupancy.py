"""How full each GPU is with one kernel, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.onchip.fullness import Fullness

_ROW_PX = 24
_SECOND_PX = 104
"""Where the second half of the words beside the bars starts."""
_CHARACTER_PX, _LEAST = 5.4, 36
"""Of a character of theirs, and room for how many there is at least."""

_SHORT = {"shared memory": "shared", "tensor memory": "tensor"}


def occupancy_bars(rows: Sequence[Fullness], *, chosen: str, mode: str = "light") -> go.Figure:
    """Warps on a multiprocessor as a share of those it could hold, with what limits them; one row per GPU.

    A kernel that does not run on a GPU has its reason in the place of the bar.
    """
    colours = theme.palette(mode)
    names = [row.gpu for row in rows]
    run = [row for row in rows if not row.refusal]
    figure = go.Figure(
        [
            go.Bar(
                y=[row.gpu for row in run],
                x=[1.0] * len(run),
                orientation="h",
                marker={"color": colours.grid, "cornerradius": 2},
                hoverinfo="skip",
                width=0.5,
            ),
            go.Bar(
                y=[row.gpu for row in run],
                x=[row.warps / row.max_warps for row in run],
                orientation="h",
                marker={
                    "color": [colours.flash if row.gpu == chosen else colours.dense for row in run],
                    "cornerradius": 2,
                },
                customdata=[_hover(row) for row in run],
                hovertemplate="%{customdata}<extra></extra>",
                width=0.5,
            ),
        ]
    )
    notes, longest = [], _LEAST
    for row in rows:
        if row.refusal:
            text = escape(row.refusal)
            notes.append(
                theme.label(mode, _cut(text), x=0, y=row.gpu, xanchor="left", xshift=2, hovertext=text)
            )
            continue
        limiter = _SHORT.get(row.limiter, row.limiter)
        share = f"<b>{row.warps}/{row.max_warps}</b>"
        words = f'<span style="color:{colours.text}">{share} · {limiter}</span>'
        spilt = f"spills {format_bytes(row.spill_bytes)}" if row.spill_bytes else ""
        small = [f"{row.registers} reg", format_bytes(row.shared_bytes), spilt, waves_words(row.waves)]
        second = " · ".join(filter(None, small))
        longest = max(longest, len(second))
        marked = f'<span style="color:{colours.mark}"><b>{spilt}</b></span>'
        second = second.replace(spilt, marked) if spilt else second
        for text, shift, size in ((words, 8, 11.5), (second, _SECOND_PX, 10.5)):
            note = theme.label(mode, text, x=1, y=row.gpu, xref="x", xanchor="left", xshift=shift)
            notes.append(note | {"font": {"size": size, "color": colours.muted}})
    figure.update_layout(
        **theme.layout(mode, _ROW_PX * len(rows) + 8),
        barmode="overlay",
        annotations=notes,
        xaxis=theme.axis(mode, grid=False, range=[0, 1], showticklabels=False),
        yaxis=theme.axis(
            mode,
            grid=False,
            autorange="reversed",
            type="category",
            categoryorder="array",
            categoryarray=names,
            tickvals=names,
            ticktext=[f"<b>{name}</b>  " if name == chosen else f"{name}  " for name in names],
            tickfont={"color": colours.text, "size": 11.5},
            range=[len(names) - 0.5, -0.5],
        ),
    )
    figure.update_yaxes(autorange=False)
    # Categories of rows that have no bar are there by an empty one.
    figure.add_trace(go.Bar(y=names, x=[0] * len(names), orientation="h", hoverinfo="skip"))
    figure.update_layout(margin={"l": 80, "r": _SECOND_PX + _CHARACTER_PX * longest, "t": 4, "b": 4})
    return figure


def waves_words(waves: float) -> str:
    """ "1.9 waves"; whole numbers above ten."""
    digits = 0 if waves >= 10 else 1 if waves >= 0.95 else 2
    return f"{waves:,.{digits}f} waves"


def _cut(text: str) -> str:
    return text if len(text) <= 62 else f"{text[:60]}…"


def _hover(row: Fullness) -> str:
    shared = f"{format_bytes(row.shared_bytes)} of {format_bytes(row.shared_limit_bytes)} shared memory"
    spills = f"spills {format_bytes(row.spill_bytes)} a thread" if row.spill_bytes else "spills nothing"
    return (
        f"<b>{row.gpu}</b>: {row.warps} of {row.max_warps} warps, {row.blocks} programs on a multiprocessor<br>"
        f"limited by {row.limiter}<br>{row.registers} registers a thread, {spills}<br>{shared}<br>"
        f"{row.programs:,} programs in {waves_words(row.waves)}, the last {100 * row.last_share:.0f} % full"
    )
