"""What the curves of a model say, in plain words. No streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.state import Settings
from app.words import Segment, percent
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.results import Curve, Metric
from flashsvd.tradeoff import Axis, Score, Spot, Tradeoff, least_keep

AXIS_NAMES: dict[Axis, str] = {
    "keep": "Keep",
    "weights": "Weights",
    "latency": "Latency",
    "memory": "Peak memory",
}
_POINT, _RISE = 0.01, 0.05


def score_names(metric: Metric | None) -> dict[Score, str]:
    """The scores as buttons say them."""
    first = "Score" if metric is None else metric.name.capitalize()
    return {"score": first, "kl": "KL to dense", "agreement": "Agreement"}


def sentence(curves: Sequence[Curve], titles: Mapping[str, str]) -> list[Segment]:
    """How small which method can be at next to no loss, and how far the others get."""
    if not curves:
        return [("No curve of this model yet: what its rank costs is not known.", False)]
    lower = curves[0].dense.lower_is_better
    name = curves[0].dense.name
    near = f"Within {percent(_RISE)} of dense {name}" if lower else f"Within 1 point of dense {name}"
    found = [pair for pair in least_keep(curves, _RISE if lower else _POINT) if pair[1].keep < 1]
    if not found:
        return [(f"{near}, no method shown keeps less than all of the factored weights.", False)]
    curve, point = found[0]
    words = [(f"{near}, ", False), (f"{_title(curve, titles)} keeps {_share(point.keep)}", True)]
    others = [pair for pair in found[1:] if pair[0].method != curve.method]
    if len(curves) == 1:
        return [*words, (" of the factored weights.", False)]
    if not others:
        return [*words, (" of the factored weights; no other method shown gets there.", False)]
    worst = others[-1]
    if _share(worst[1].keep) == _share(point.keep):
        return [*words, (" of the factored weights, and so do the others shown.", False)]
    return [
        *words,
        (f" of the factored weights; {_title(worst[0], titles)} needs {_share(worst[1].keep)}.", False),
    ]


def spot_line(spot: Spot, titles: Mapping[str, str]) -> str:
    """A point of the front as one line of a menu: what it keeps, and its score."""
    axis = ScoreAxis.of(spot.metric)
    name = titles.get(spot.method, spot.method)
    value = f"{spot.metric.value:.2g}" if spot.metric.unit == "nats" else axis.words(spot.metric.value)
    return f"{name}, {_share(spot.keep)} → {value}{' %' if axis.percent else ''}"


def near_dense(spots: Sequence[Spot], dense: tuple[float, Metric] | None) -> int:
    """Position of the first point that is next to dense, or of the last one."""
    if dense is None:
        return len(spots) - 1
    value = dense[1].value
    lower = dense[1].lower_is_better
    limit = value * (1 + _RISE) if lower else value - _POINT
    return next(
        (
            index
            for index, spot in enumerate(spots)
            if (spot.metric.value <= limit if lower else spot.metric.value >= limit)
        ),
        len(spots) - 1,
    )


def left_out(found: Tradeoff, axis: Axis, score: Score, settings: Settings) -> str:
    """Why points are missing, counted; nothing where none is."""
    if not found.left_out:
        return ""
    reasons = []
    if axis in ("latency", "memory"):
        reasons.append(f"no measurement at batch {settings.batch} x {settings.seq}, {settings.dtype}")
    if score == "kl":
        reasons.append("no KL above 0, which a logarithmic axis needs")
    elif score == "agreement":
        reasons.append("no agreement recorded")
    number = f"{found.left_out} point" + ("s" if found.left_out > 1 else "")
    return f"{number} left out: {' or '.join(reasons) or 'no place on this axis'}."


def precision(curves: Sequence[Curve], settings: Settings) -> str:
    """Says where curves were scored in another precision than the controls'."""
    other = sorted({curve.dtype for curve in curves} - {settings.dtype})
    return f"Scored in {', '.join(other)}." if other else ""


def measured_where(found: Tradeoff, axis: Axis) -> str:
    """Where latency and memory were measured."""
    if axis not in ("latency", "memory") or not found.costs:
        return ""
    table = found.costs[0]
    engine = table.plans[0].engine if table.plans else "dense"
    return (
        f"{engine} engine, batch {table.batch} x {table.seq}, {table.dtype}, {table.machine.label}; "
        "plans timed in turn."
    )


def _title(curve: Curve, titles: Mapping[str, str]) -> str:
    name = titles.get(curve.method, curve.method)
    return name if curve.allocator == "uniform" else f"{name} with {curve.allocator} ranks"


def _share(keep: float) -> str:
    return f"{100 * keep:.0f} %"
