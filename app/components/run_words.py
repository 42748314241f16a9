"""A kept run in words, from its line in the list."""

from __future__ import annotations

from collections.abc import Sequence

from app.evidence import Badge
from app.words import Segment, count, milliseconds, percent, when
from flashsvd.errors import format_bytes
from flashsvd.results import Metric
from flashsvd.runs.rows import RunRow
from flashsvd.side_by_side import NumberRow


def badge_of(row: RunRow) -> Badge:
    """Where and when a kept run was measured."""
    return Badge("REPLAY", f"{row.machine} · {when(row.created)}")


def input_words(row: RunRow) -> str:
    """Batch and tokens, or how many points a curve has."""
    if row.batch is None or row.seq is None:
        return f"{row.points} points, {row.dtype}" if row.points is not None else row.dtype
    return f"{row.batch} x {row.seq}, {row.dtype}"


def score_words(row: RunRow) -> str:
    """The score with its metric; what a curve is of."""
    if not row.metric:
        return ""
    name = row.metric.rpartition("/")[2]
    if row.score is None:
        return name
    metric = Metric(row.metric, row.score, row.samples or 0, row.score, row.score, None, 0)
    return f"{100 * row.score:.1f} {name}" if metric.unit == "%" else f"{row.score:.2f} {name}"


def about(row: RunRow) -> str:
    """What was run, in one line."""
    kept = "" if row.keep is None else f" · keep {percent(row.keep)}"
    numbers = f" · numbers of {row.engine}" if row.engine else ""
    return f"{row.model} · {row.method}{kept} · {input_words(row)}{numbers}"


def pair_sentence(rows: Sequence[NumberRow], letters: tuple[str, str] = ("A", "B")) -> list[Segment]:
    """What the second of two runs takes where the first takes another amount; only what may be compared."""
    a, b = letters
    found: list[list[Segment]] = []
    for row in (row for row in rows if row.main and row.difference is not None):
        first, second, _ = row.words()
        if first == second or row.within_noise:
            continue
        if row.unit == "ms" and row.a and row.b:
            change = f"{row.a / row.b:.1f}x faster" if row.b < row.a else f"{row.b / row.a:.1f}x slower"
            found.append([("is ", False), (change, True)])
        else:
            verb, what = _VERBS.get(row.label, ("scores", ""))
            found.append([(f"{verb} ", False), (second, True), (f"{what}, {a} {first}", False)])
    if not found:
        return [(f"{a} and {b} are alike as far as they can be compared.", False)]
    parts = [segment for part in found for segment in (("; ", False), *part)][1:]
    return [(f"{b} ", False), *parts, (".", False)]


_VERBS = {
    "Keep, of factored weights": ("keeps", " of the weights"),
    "Peak activation memory": ("takes", " of activations"),
}


def facts(row: RunRow) -> list[tuple[str, str, str]]:
    """Its numbers as (label, value, note)."""
    if row.kind == "curve":
        return [
            ("Points", str(row.points or 0), "score against keep"),
            ("Scored by", row.metric.rpartition("/")[2] or "—", f"n = {count(row.samples or 0)}"),
        ]
    cells = []
    if row.peak_bytes is not None:
        dense = "" if row.dense_peak_bytes is None else f"dense {format_bytes(row.dense_peak_bytes)}"
        cells.append(("Peak activations", format_bytes(row.peak_bytes), dense))
    if row.median_ms is not None:
        dense = "" if row.dense_ms is None else f"dense {milliseconds(row.dense_ms)}"
        check = {True: "outputs agree", False: "outputs differ", None: ""}[row.checked]
        note = ", ".join(part for part in (dense, check) if part)
        cells.append(("Latency, median", milliseconds(row.median_ms), note))
    if row.score is not None:
        value, _, name = score_words(row).partition(" ")
        cells.append((name.capitalize(), value, f"n = {count(row.samples or 0)}"))
    if row.keep is not None:
        cells.append(("Keep", percent(row.keep), "of factored weights"))
    return cells
