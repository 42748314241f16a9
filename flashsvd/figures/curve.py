"""What the rank costs: a score against the share of parameters kept."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.results import Curve, CurvePoint, Metric


def hover(metric: Metric, machine: str) -> str:
    """Score with its 95 % interval, sample size, seed and machine."""
    axis = ScoreAxis.of(metric)
    value, low, high = (axis.words(number) for number in (metric.value, metric.low, metric.high))
    parts = [
        f"{metric.name} {value}{' %' if axis.percent else ''} ({low} to {high})",
        f"n = {metric.n:,} {metric.counted}, seed {metric.seed}",
        machine,
    ]
    return "<br>".join(part for part in parts if part)


def curve(
    result: Curve | None,
    *,
    here: tuple[float, Metric] | None = None,
    plan_keep: float | None = None,
    coming: Sequence[CurvePoint] = (),
    dense: Metric | None = None,
    mode: str = "light",
    height: int = 300,
    machine: str = "",
) -> go.Figure:
    """Score against keep in percent, with the 95 % band, the dense line and the majority-class line.

    Shares of right answers are in percent, perplexity is on a logarithmic axis.

    Args:
        here: keep and score of the run on screen.
        plan_keep: keep of a plan that has not been run.
        coming: points of a curve that is still being computed.
        dense: the dense score, where no curve gives it yet.
    """
    colours = theme.palette(mode)
    figure = go.Figure()
    points = sorted(result.points if result else (), key=lambda point: point.keep)
    reference = result.dense if result else dense or (here[1] if here else None)
    axis = ScoreAxis.of(reference or (coming[0].metric if coming else None))
    if points:
        _add_band(figure, points, axis, mode)
        _add_points(figure, points, axis, mode, machine)
    for point in sorted(coming, key=lambda point: point.keep):
        figure.add_trace(
            go.Scatter(
                x=[100 * point.keep],
                y=[axis.at(point.metric.value)],
                mode="markers",
                name="coming",
                marker={"size": 8, "color": colours.surface, "line": {"width": 2, "color": colours.flash}},
                hovertemplate=hover(point.metric, machine) + "<extra>coming in</extra>",
            )
        )
    notes = []
    if result is not None or dense is not None:
        assert reference is not None
        _add_line(figure, axis.at(reference.value), colours.dense, "dash")
        notes.append(
            theme.label(
                mode,
                f"dense {axis.words(reference.value)}",
                x=2,
                y=axis.noted(reference.value),
                **_ABOVE_LEFT,
            )
        )
    if reference is not None and reference.floor is not None:
        _add_line(figure, axis.at(reference.floor), colours.dense, "dot")
        notes.append(
            theme.label(
                mode,
                f"always the commonest class {axis.words(reference.floor)}",
                x=100,
                y=axis.noted(reference.floor),
                xanchor="right",
                yanchor="bottom",
            )
        )
    if plan_keep is not None:
        figure.add_vline(x=100 * plan_keep, line={"width": 1.5, "dash": "dot", "color": colours.mark})
        notes.append(
            theme.label(
                mode,
                "your plan",
                colour=colours.mark,
                x=100 * plan_keep,
                y=0.3,
                yref="paper",
                xshift=-5 if plan_keep > 0.5 else 5,
                xanchor="right" if plan_keep > 0.5 else "left",
            )
        )
    if here is not None:
        notes.append(_add_here(figure, here, axis, mode, machine))
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, title="keep %", range=[0, 103], tickvals=[10, 30, 50, 70, 90]),
        yaxis=axis.settings(mode, _values(points, coming, reference, here)),
    )
    figure.update_layout(margin={"l": 36})
    return figure


_ABOVE_LEFT = {"xanchor": "left", "yanchor": "bottom"}


def _add_band(figure: go.Figure, points: Sequence[CurvePoint], axis: ScoreAxis, mode: str) -> None:
    x = [100 * point.keep for point in points]
    figure.add_trace(
        go.Scatter(
            x=x + x[::-1],
            y=[axis.at(point.metric.high) for point in points]
            + [axis.at(point.metric.low) for point in points][::-1],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=theme.faded(theme.palette(mode).flash, 0.16),
            hoverinfo="skip",
            name="95 % band",
        )
    )


def _add_points(
    figure: go.Figure, points: Sequence[CurvePoint], axis: ScoreAxis, mode: str, machine: str
) -> None:
    colours = theme.palette(mode)
    figure.add_trace(
        go.Scatter(
            x=[100 * point.keep for point in points],
            y=[axis.at(point.metric.value) for point in points],
            customdata=[hover(point.metric, machine) for point in points],
            mode="lines+markers",
            line={"width": 2.2, "color": colours.flash},
            marker={"size": 5, "color": colours.flash},
            hovertemplate="keep %{x:.1f} %<br>%{customdata}<extra></extra>",
            name="curve",
        )
    )


def _add_line(figure: go.Figure, y: float, colour: str, dash: str) -> None:
    figure.add_hline(y=y, line={"width": 1.2, "dash": dash, "color": colour})


def _add_here(
    figure: go.Figure, here: tuple[float, Metric], axis: ScoreAxis, mode: str, machine: str
) -> dict[str, object]:
    keep, metric = here
    colours = theme.palette(mode)
    figure.add_trace(
        go.Scatter(
            x=[100 * keep],
            y=[axis.at(metric.value)],
            mode="markers",
            name="you are here",
            marker={"size": 13, "color": colours.flash, "line": {"width": 2.5, "color": colours.surface}},
            hovertemplate=f"keep {100 * keep:.1f} %<br>{hover(metric, machine)}<extra>you are here</extra>",
        )
    )
    right = keep > 0.62
    return theme.label(
        mode,
        "<b>you are here</b>",
        colour=colours.flash,
        x=100 * keep,
        y=axis.noted(metric.value),
        xshift=-8 if right and not metric.lower_is_better else 8,
        yshift=11 if metric.lower_is_better else -11,
        xanchor="right" if right else "left",
        # On the side of a falling or rising curve where there is room.
        yanchor="bottom" if metric.lower_is_better else "top",
    )


def _values(
    points: Sequence[CurvePoint],
    coming: Sequence[CurvePoint],
    reference: Metric | None,
    here: tuple[float, Metric] | None,
) -> list[float]:
    """All that the y axis has to hold."""
    found = [end for point in (*points, *coming) for end in (point.metric.low, point.metric.high)]
    for metric in (reference, here[1] if here else None):
        if metric is not None:
            found += [metric.low, metric.high, *([] if metric.floor is None else [metric.floor])]
    return found
