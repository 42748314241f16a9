"""Bench recordings as Markdown: one table per model, dtype and machine, then what was measured with and how to
measure it again. The README's table is this text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashsvd.bench.encoder import EncoderRequest
from flashsvd.bench.rows import Row, wrong_in_words
from flashsvd.bench.saved import SavedPoint, ranks_in_words, read_points
from flashsvd.errors import InputError

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

_NONE = "–"
_NOT_RUN = Row("", "", "left out")
_TIMED = (
    ("dense", "dense ms"),
    ("dense-compile", "dense compiled ms"),
    ("lowrank", "low-rank ms"),
    ("lowrank-compile", "low-rank compiled ms"),
    ("flash", "flash ms"),
    ("flash-graph", "flash graph ms"),
)
_HEADINGS = (
    "B x S",
    "ranks",
    *(heading for _, heading in _TIMED),
    "flash speed-up",
    "graph speed-up",
    "dense MiB",
    "flash MiB",
    "less memory",
)
_LEGEND = (
    "Medians. Speed-up is over the compiled dense model, less memory is the dense model's peak activation memory "
    "over that of flash. – where a run failed or was left out, and for a ratio of outputs that did not both pass the "
    "check."
)


def report(points: Sequence[SavedPoint]) -> str:
    """The points as Markdown, the same text whatever order they were measured in; of equal points the newest."""
    if not points:
        return "No bench recordings are bundled yet."
    by_age = sorted(points, key=lambda saved: saved.point.created)
    ordered = sorted({saved.identity: saved for saved in by_age}.values(), key=_order)
    sections = [_section(list(group)) for _, group in itertools.groupby(ordered, _title)]
    by_place = itertools.groupby(sorted(ordered, key=_place_words), _place_words)
    captions = [_caption(words, list(group)) for words, group in by_place]
    return "\n\n".join([*sections, _LEGEND, *captions])


def read_all(paths: Iterable[Path]) -> list[SavedPoint]:
    """The points of several files. Raises InputError as `flashsvd.bench.saved.read_points` does."""
    return [point for path in paths for point in read_points(path)]


def between_markers(text: str, name: str) -> str:
    """What stands between the markers of a document called `name`.

    Raises:
        InputError: a marker is missing, there twice, or the end comes first.
    """
    return _split(text, name)[1]


def with_report(text: str, name: str, table: str) -> str:
    """The document with `table` between its markers. Raises InputError as `between_markers` does."""
    before, _, after = _split(text, name)
    return f"{before}{framed(table)}{after}"


def framed(table: str) -> str:
    """The table as it stands between two markers, each on a line of its own.

    >>> framed("a")
    '\\na\\n'
    """
    return f"\n{table}\n"


def _split(text: str, name: str) -> tuple[str, str, str]:
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise InputError(
                f"{name} must hold the line {marker} once, it is there {text.count(marker)} times"
            )
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    if end < start:
        raise InputError(f"{name} has {END} before {BEGIN}: swap them")
    return text[:start], text[start:end], text[end:]


def _order(saved: SavedPoint) -> tuple[object, ...]:
    config = saved.point.config
    model = (config["model"], config["dtype"], saved.place.machine.label)
    return *model, config["seq"], config["batch"], _numbers_first(ranks_in_words(config))


def _numbers_first(words: str) -> tuple[list[int], str]:
    """Ranks in the order of their numbers, the largest first.

    >>> sorted(["(32,9,9)", "(200,9,9)", "keep 0.5"], key=_numbers_first)
    ['keep 0.5', '(200,9,9)', '(32,9,9)']
    """
    parts = words.strip("()").split(",")
    return [-int(part) for part in parts] if all(part.isdigit() for part in parts) else [], words


def _title(saved: SavedPoint) -> str:
    config = saved.point.config
    return f"**{config['model']}**, {config['dtype']}, {saved.place.machine.label}"


def _section(points: Sequence[SavedPoint]) -> str:
    cells = [
        _HEADINGS,
        ("---", "---", *("---:" for _ in _HEADINGS[2:])),
        *(_cells(point) for point in points),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    notes = [f"- {note}" for point in points for note in _notes(point)]
    return "\n\n".join(filter(None, [_title(points[0]), table, "\n".join(notes)]))


def _cells(saved: SavedPoint) -> tuple[str, ...]:
    rows = _by_name(saved)
    flash, graph, dense = (rows.get(name, _NOT_RUN) for name in ("flash", "flash-graph", "dense"))
    return (
        _input(saved),
        _ranks(saved),
        *(_milliseconds(rows.get(name, _NOT_RUN)) for name, _ in _TIMED),
        _ratio(flash.speedup),
        _ratio(graph.speedup),
        _mebibytes(dense),
        _mebibytes(flash),
        _ratio(flash.peak_reduction),
    )


def _notes(saved: SavedPoint) -> list[str]:
    """Why a point, or a ratio of one of our rows, is not there; what was not asked for needs no note."""
    where = f"{_input(saved)}, {_ranks(saved)}"
    if saved.point.failure is not None:
        return [f"{where}: {saved.point.failure}"]
    rows = _by_name(saved)
    failed = [
        f"{where}: {name} failed: {rows[name].reason}"
        for name, _ in _TIMED
        if name in rows and rows[name].status == "failed"
    ]
    red = [
        f"{where}: {wrong_in_words(row, row.gate)}"
        for row in rows.values()
        if row.gate and not row.gate.passed
    ]
    return failed + red


def _caption(words: str, points: Sequence[SavedPoint]) -> str:
    days = sorted({saved.point.created[:10] for saved in points})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commands = "\n".join(merged_commands([saved.point.config for saved in points]))
    return (
        f"Measured on {words}, {dates} (UTC), ceilings there: {_ceilings(points)}. "
        f"To repeat:\n\n```\n{commands}\n```"
    )


def _place_words(saved: SavedPoint) -> str:
    place = saved.place
    names = ("torch", "triton", "transformers", "flashsvd", "python")
    numbers = [f"{name} {place.versions[name]}" for name in names if place.versions.get(name)]
    driver = [f"driver {place.machine.driver}"] if place.machine.driver else []
    return ", ".join([place.machine.accelerator or place.machine.cpu, *driver, *numbers])


def merged_commands(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few commands as sweeps allow that measure exactly these settings again."""
    found = [dict(config) for config in configs]
    for name, joint in (("ranks", ":"), ("keep", ","), ("seq", ","), ("batch", ","), ("dtype", ",")):
        found = _merged(found, name, joint)
    return list(dict.fromkeys(EncoderRequest.command_of(config) for config in found))


def _merged(configs: Sequence[dict[str, Any]], name: str, joint: str) -> list[dict[str, Any]]:
    """Settings that differ in one value alone as one, whose value is the list of theirs."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        rest = {key: value for key, value in config.items() if key != name}
        groups.setdefault(f"{name in config} {sorted(rest.items())}", []).append(config)
    return [
        group[0] | {name: joint.join(dict.fromkeys(str(config[name]) for config in group))}
        if name in group[0]
        else group[0]
        for group in groups.values()
    ]


def _ceilings(points: Sequence[SavedPoint]) -> str:
    """What the machine could do at most, over all runs."""
    asked = {str(saved.point.config["dtype"]) for saved in points}
    products = {
        dtype: [rate for saved in points if (rate := saved.place.ceilings.tflops(dtype)) is not None]
        for dtype in sorted(asked)
    }
    words = [f"{dtype} product {_range(rates)} TFLOP/s" for dtype, rates in products.items() if rates]
    copies = [saved.place.ceilings.copy_tbps for saved in points]
    return ", ".join([*words, f"copy {_range(copies)} TB/s"])


def _range(values: Sequence[float]) -> str:
    """The smallest and the largest to three digits, or the one that both are.

    >>> _range([786.2, 791.4]), _range([4.301, 4.302])
    ('786 to 791', '4.3')
    """
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values))))


def _by_name(saved: SavedPoint) -> dict[str, Row]:
    return {row.name: row for row in saved.point.rows}


def _input(saved: SavedPoint) -> str:
    return f"{saved.point.config['batch']} x {saved.point.config['seq']}"


def _ranks(saved: SavedPoint) -> str:
    words = ranks_in_words(saved.point.config)
    return words if words.startswith("(") else f"`{words}`".replace("|", "\\|")


def _milliseconds(row: Row) -> str:
    if row.latency_ms is None:
        return _NONE
    wrong = row.gate is not None and not row.gate.passed
    return f"{row.latency_ms.p50:.2f}{' (wrong)' if wrong else ''}"


def _mebibytes(row: Row) -> str:
    return _NONE if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"
