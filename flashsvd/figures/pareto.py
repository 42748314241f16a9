"""What the rank costs, method by method: a score against what a plan keeps, weighs or takes to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.figures.curve import hover
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.results import Metric
from flashsvd.tradeoff import Axis, Spot, Tradeoff

AXIS_TITLES: dict[Axis, str] = {
    "keep": "keep % of the factored weights",
    "weights": "MiB of weights, whole model",
    "latency": "ms, median",
    "memory": "MiB of peak activation memory",
}
_DASHES = {"uniform": "solid", "energy": "dash", "calibrated": "dot", "ars": "dashdot", "asvd": "longdash"}


def pareto(
    found: Tradeoff,
    axis: Axis,
    *,
    titles: dict[str, str] | None = None,
    here: tuple[str, str] | None = None,
    mode: str = "light",
    height: int = 400,
) -> go.Figure:
    """Points of every method with 95 % bands, the dense star, and the front that no point beats.

    Where the axis is measured (latency, memory) intervals are bars: points of one curve need not come in order.
    Every point's customdata is [method, plan, tooltip, asked keep or ""], so that a click can say what it is.

    Args:
        titles: methods as people know them.
        here: method and plan that the controls say; its point is ringed.
    """
    colours = theme.palette(mode)
    spots = found.spots
    first = spots[0].metric if spots else found.dense[1] if found.dense else None
    scale = ScoreAxis.of(first)
    names = titles or {}
    figure = go.Figure()
    for series in dict.fromkeys(spot.series for spot in spots if spot.source == "curve"):
        members = [spot for spot in spots if spot.series == series and spot.source == "curve"]
        members.sort(key=lambda spot: (spot.keep, spot.x))
        if axis in ("keep", "weights"):
            _add_band(figure, members, scale, mode)
        _add_series(figure, members, scale, names, mode, bars=axis in ("latency", "memory"))
    _add_single(figure, [spot for spot in spots if spot.source == "coming"], scale, names, mode)
    _add_single(figure, [spot for spot in spots if spot.source == "run"], scale, names, mode)
    _add_front(figure, [spots[index] for index in found.front], scale, mode)
    notes = []
    if found.dense is not None:
        x, metric = found.dense
        figure.add_hline(
            y=scale.at(metric.value), line={"width": 1.1, "dash": "dash", "color": colours.dense}
        )
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[scale.at(metric.value)],
                mode="markers",
                name="dense",
                marker={
                    "symbol": "star",
                    "size": 16,
                    "color": colours.text,
                    "line": {"width": 1.5, "color": colours.surface},
                },
                hovertemplate=f"dense<br>{hover(metric, '')}<extra></extra>",
            )
        )
        notes.append(_dense_label(metric, scale, mode))
        if metric.floor is not None:
            figure.add_hline(
                y=scale.at(metric.floor), line={"width": 1.1, "dash": "dot", "color": colours.dense}
            )
            notes.append(
                theme.label(
                    mode,
                    f"always the commonest class {scale.words(metric.floor)}",
                    x=1,
                    xref="paper",
                    y=scale.noted(metric.floor),
                    xanchor="right",
                    yanchor="bottom",
                )
            )
    mine = next((spot for spot in spots if here == (spot.method, spot.plan)), None)
    if mine is not None:
        notes.append(_add_here(figure, mine, spots, scale, mode))
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, title=AXIS_TITLES[axis], **_span(found, axis)),
        yaxis=scale.settings(mode, _values(found)),
    )
    figure.update_layout(
        margin={"l": 44, "t": 34},
        showlegend=True,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 12, "color": colours.text},
            "bgcolor": "rgba(0,0,0,0)",
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )
    return figure


def spot_words(spot: Spot, name: str) -> str:
    """All that is known of a point, for its tooltip."""
    lines = [
        f"<b>{name}</b>" + ("" if spot.allocator in ("uniform", "run") else f", ranks by {spot.allocator}")
    ]
    lines.append(f"keep {100 * spot.keep:.1f} %, {spot.kept_parameters:,} parameters")
    lines.append(hover(spot.metric, spot.machine))
    if spot.cost is not None:
        timed = f"{spot.cost.latency_ms.p50:.1f} ms, " if spot.cost.latency_ms else ""
        peak = spot.cost.peak_activation_bytes / theme.MIB
        lines.append(f"{spot.cost.engine} engine: {timed}peak {peak:.1f} MiB")
    return "<br>".join(lines)


def _about(spot: Spot, name: str) -> list[str]:
    even = spot.allocator == "uniform" and spot.asked_keep is not None
    return [spot.method, spot.plan, spot_words(spot, name), f"{spot.asked_keep:g}" if even else ""]


def _add_band(figure: go.Figure, members: Sequence[Spot], scale: ScoreAxis, mode: str) -> None:
    x = [spot.x for spot in members]
    low = [_low(spot.metric, scale) for spot in members]
    high = [scale.at(spot.metric.high) for spot in members]
    colour, _ = theme.method_style(members[0].method, mode)
    figure.add_trace(
        go.Scatter(
            x=x + x[::-1],
            y=high + low[::-1],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=theme.faded(colour, 0.11),
            hoverinfo="skip",
            showlegend=False,
            name="95 % band",
        )
    )


def _add_series(
    figure: go.Figure,
    members: Sequence[Spot],
    scale: ScoreAxis,
    names: dict[str, str],
    mode: str,
    *,
    bars: bool,
) -> None:
    method, allocator = members[0].series
    colour, symbol = theme.method_style(method, mode)
    name = names.get(method, method)
    extra: dict[str, Any] = {}
    if bars:
        middle = [scale.at(spot.metric.value) for spot in members]
        extra["error_y"] = {
            "type": "data",
            "array": [scale.at(s.metric.high) - y for s, y in zip(members, middle, strict=True)],
            "arrayminus": [y - _low(s.metric, scale) for s, y in zip(members, middle, strict=True)],
            "thickness": 1,
            "width": 0,
            "color": theme.faded(colour, 0.5),
        }
    figure.add_trace(
        go.Scatter(
            x=[spot.x for spot in members],
            y=[scale.at(spot.metric.value) for spot in members],
            customdata=[_about(spot, name) for spot in members],
            mode="lines+markers",
            line={
                "width": 1.2 if bars else 2,
                "color": theme.faded(colour, 0.45) if bars else colour,
                "dash": _DASHES.get(allocator, "dash"),
            },
            marker={
                "size": 9,
                "symbol": symbol,
                "color": colour,
                "line": {"width": 1, "color": _paper(mode)},
            },
            hovertemplate="%{customdata[2]}<extra></extra>",
            name=name if allocator == "uniform" else f"{name}, {allocator}",
            **_STAY,
            **extra,
        )
    )


def _add_single(
    figure: go.Figure, members: Sequence[Spot], scale: ScoreAxis, names: dict[str, str], mode: str
) -> None:
    """Open markers: of points that come in, and of single runs."""
    words = {"coming": "coming in", "run": "your run"}
    for method in dict.fromkeys(spot.method for spot in members):
        mine = [spot for spot in members if spot.method == method]
        colour, symbol = theme.method_style(method, mode)
        name = names.get(method, method)
        figure.add_trace(
            go.Scatter(
                x=[spot.x for spot in mine],
                y=[scale.at(spot.metric.value) for spot in mine],
                customdata=[_about(spot, name) for spot in mine],
                mode="markers",
                marker={"size": 10, "symbol": f"{symbol}-open", "color": colour, "line": {"width": 2}},
                hovertemplate=f"%{{customdata[2]}}<extra>{words[mine[0].source]}</extra>",
                name=f"{name}, {words[mine[0].source]}",
                **_STAY,
            )
        )


def _add_front(figure: go.Figure, members: Sequence[Spot], scale: ScoreAxis, mode: str) -> None:
    if len(members) < 2:
        return
    figure.add_trace(
        go.Scatter(
            x=[spot.x for spot in members],
            y=[scale.at(spot.metric.value) for spot in members],
            mode="lines+markers",
            line={"width": 1.2, "dash": "dot", "color": theme.palette(mode).text, "shape": "hv"},
            marker={
                "size": 16,
                "symbol": "circle-open",
                "color": theme.palette(mode).text,
                "line": {"width": 1.2},
            },
            hoverinfo="skip",
            name="front: no point beats it",
        )
    )


def _add_here(
    figure: go.Figure, mine: Spot, spots: Sequence[Spot], scale: ScoreAxis, mode: str
) -> dict[str, Any]:
    accent = theme.palette(mode).flash
    figure.add_trace(
        go.Scatter(
            x=[mine.x],
            y=[scale.at(mine.metric.value)],
            mode="markers",
            marker={"size": 21, "symbol": "circle-open", "color": accent, "line": {"width": 3}},
            hoverinfo="skip",
            showlegend=False,
            name="you are here",
        )
    )
    far = mine.x > (min(s.x for s in spots) + max(s.x for s in spots)) / 2
    lower = mine.metric.lower_is_better
    return theme.label(
        mode,
        "<b>you are here</b>",
        colour=accent,
        x=mine.x,
        y=scale.noted(mine.metric.value),
        xshift=-12 if far and not lower else 12,
        yshift=16 if lower else -16,
        xanchor="right" if far and not lower else "left",
        yanchor="bottom" if lower else "top",
    )


def _dense_label(metric: Metric, scale: ScoreAxis, mode: str) -> dict[str, Any]:
    return theme.label(
        mode,
        f"dense {scale.words(metric.value)}",
        x=0.005,
        xref="paper",
        y=scale.noted(metric.value),
        xanchor="left",
        yanchor="bottom",
    )


def _span(found: Tradeoff, axis: Axis) -> dict[str, Any]:
    if axis == "keep":
        return {"range": [0, 103], "tickvals": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]}
    places = [spot.x for spot in found.spots] + ([found.dense[0]] if found.dense else [])
    if not places:
        return {"range": [0.0, 1.0]}
    low, high = min(places), max(places)
    pad = 0.05 * (high - low) or 0.1 * high or 1.0
    return {"range": [max(0.0, low - pad), high + pad], "nticks": 10}


def _values(found: Tradeoff) -> list[float]:
    """All that the y axis has to hold."""
    metrics = [spot.metric for spot in found.spots] + ([found.dense[1]] if found.dense else [])
    log = bool(metrics) and metrics[0].unit != "%"
    ends = [end for m in metrics for end in (m.low, m.high, m.value) if end > 0 or not log]
    ends += [m.floor for m in metrics if m.floor is not None]
    if log and metrics:
        # An interval that reaches down to nothing must not stretch a logarithmic axis.
        least = min(m.value for m in metrics)
        ends = [max(end, least / 3) for end in ends]
    return ends


def _low(metric: Metric, scale: ScoreAxis) -> float:
    """The lower end, above 0 where the axis is logarithmic."""
    return scale.at(metric.low) if scale.percent else max(metric.low, metric.value / 3)


def _paper(mode: str) -> str:
    return theme.palette(mode).surface


# A click selects a point; the others stay as they are.
_STAY: dict[str, Any] = {
    "selected": {"marker": {"opacity": 1}},
    "unselected": {"marker": {"opacity": 1}},
}
