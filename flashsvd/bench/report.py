"""Bench recordings as Markdown: one table per model, dtype and machine, then what was measured with and how to
measure it again. The README's tables are this text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flashsvd.bench.decode import DecodeRequest
from flashsvd.bench.encoder import EncoderRequest
from flashsvd.bench.prefill import PrefillRequest
from flashsvd.bench.report_columns import COLUMNS, RED, ranks_of, size_in_words
from flashsvd.bench.request import ModelRequest
from flashsvd.bench.rows import wrong_in_words
from flashsvd.bench.saved import SavedPoint, ranks_in_words, read_points
from flashsvd.errors import InputError

_REQUESTS: Mapping[str, type[ModelRequest]] = MappingProxyType(
    {kind.bench: kind for kind in (EncoderRequest, DecodeRequest, PrefillRequest)}
)


@dataclass(frozen=True)
class Section:
    """A part of a document that a report fills: what its markers are called, and the benchmarks in it."""

    name: str
    benches: tuple[str, ...]

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}:end -->"

    def of(self, points: Sequence[SavedPoint]) -> list[SavedPoint]:
        """The points that belong here."""
        return [saved for saved in points if saved.point.bench in self.benches]


ENCODERS, DECODERS = Section("bench", ("encoder",)), Section("decoders", ("decode", "prefill"))
SECTIONS = (ENCODERS, DECODERS)


def report(points: Sequence[SavedPoint], section: Section | None = None) -> str:
    """The points as Markdown, the same text whatever order they were measured in; of equal points the newest.

    section: those of one alone. All sections one after another if None.
    """
    if section is None:
        return "\n\n".join(report(points, one) for one in sections_of(points))
    mine = section.of(points)
    if not mine:
        return "No bench recordings are bundled yet."
    by_age = sorted(mine, key=lambda saved: saved.point.created)
    ordered = sorted({saved.identity: saved for saved in by_age}.values(), key=_order)
    tables = [_table(list(group)) for _, group in itertools.groupby(ordered, _title)]
    there = {saved.point.bench for saved in mine}
    legends = [COLUMNS[bench].legend for bench in section.benches if bench in there]
    legends[-1] += f" {RED}"
    by_place = itertools.groupby(sorted(ordered, key=_place_words), _place_words)
    captions = [_caption(words, list(group)) for words, group in by_place]
    return "\n\n".join([*tables, *legends, *captions])


def read_all(paths: Iterable[Path]) -> list[SavedPoint]:
    """The points of several files. Raises InputError as `flashsvd.bench.saved.read_points` does."""
    return [point for path in paths for point in read_points(path)]


def sections_of(points: Sequence[SavedPoint]) -> list[Section]:
    """The sections that points belong to; of none the encoders', which then says so."""
    return [one for one in SECTIONS if one.of(points)] or [ENCODERS]


def between_markers(text: str, name: str, section: Section = ENCODERS) -> str:
    """What stands between a section's markers in a document called `name`.

    Raises:
        InputError: a marker is missing, there twice, or the end comes first.
    """
    return _split(text, name, section)[1]


def with_report(text: str, name: str, table: str, section: Section = ENCODERS) -> str:
    """The document with `table` between a section's markers. Raises InputError as `between_markers` does."""
    before, _, after = _split(text, name, section)
    return f"{before}{framed(table)}{after}"


def framed(table: str) -> str:
    """The table as it stands between two markers, each on a line of its own.

    >>> framed("a")
    '\\na\\n'
    """
    return f"\n{table}\n"


def _split(text: str, name: str, section: Section) -> tuple[str, str, str]:
    for marker in (section.begin, section.end):
        if text.count(marker) != 1:
            raise InputError(
                f"{name} must hold the line {marker} once, it is there {text.count(marker)} times"
            )
    start, end = text.index(section.begin) + len(section.begin), text.index(section.end)
    if end < start:
        raise InputError(f"{name} has {section.end} before {section.begin}: swap them")
    return text[:start], text[start:end], text[end:]


def _order(saved: SavedPoint) -> tuple[object, ...]:
    config = saved.point.config
    model = (config["model"], config["dtype"], saved.place.machine.label, saved.point.bench)
    length = config["context" if "context" in config else "seq"]
    return *model, length, config["batch"], _numbers_first(ranks_in_words(config))


def _numbers_first(words: str) -> tuple[list[int], str]:
    """Ranks in the order of their numbers, the largest first.

    >>> sorted(["(32,9,9)", "(200,9,9)", "keep 0.5"], key=_numbers_first)
    ['keep 0.5', '(200,9,9)', '(32,9,9)']
    """
    parts = words.strip("()").split(",")
    return [-int(part) for part in parts] if all(part.isdigit() for part in parts) else [], words


def _title(saved: SavedPoint) -> str:
    config, what = saved.point.config, COLUMNS[saved.point.bench].title
    words = f"**{config['model']}**, {config['dtype']}, {saved.place.machine.label}"
    return f"{words}, {what}" if what else words


def _table(points: Sequence[SavedPoint]) -> str:
    columns = COLUMNS[points[0].point.bench]
    rules = (*("---" for _ in columns.before), *("---:" for _ in columns.headings[len(columns.before) :]))
    rows = [columns.cells(point) for point in points]
    # Rows that no point was asked for get no column; a point that failed as a whole says nothing of that.
    asked = {row.name for point in points for row in point.point.rows}
    of_rows = (*columns.timed, *((name, heading) for heading, name in columns.alone.items()))
    dropped = {heading for name, heading in of_rows if asked and name not in asked}
    used = [heading not in dropped for heading in columns.headings]
    cells = [itertools.compress(row, used) for row in (columns.headings, rules, *rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    notes = [f"- {note}" for point in points for note in _notes(point)]
    return "\n\n".join(filter(None, [_title(points[0]), table, "\n".join(notes)]))


def _notes(saved: SavedPoint) -> list[str]:
    """Why a point, or a ratio of one of our rows, is not there; what was not asked for needs no note."""
    where = f"{size_in_words(saved)}, {ranks_of(saved)}"
    if saved.point.failure is not None:
        return [f"{where}: {saved.point.failure}"]
    shown = [name for name, _ in COLUMNS[saved.point.bench].timed]
    rows = saved.point.rows
    failed = [
        f"{where}: {row.name} failed: {row.reason}"
        for row in rows
        if row.status == "failed" and row.name in shown
    ]
    red = [f"{where}: {wrong_in_words(row, row.gate)}" for row in rows if row.gate and not row.gate.passed]
    return failed + red


def _caption(words: str, points: Sequence[SavedPoint]) -> str:
    days = sorted({saved.point.created[:10] for saved in points})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commands = "\n".join(merged_commands(points))
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


def merged_commands(points: Sequence[SavedPoint]) -> list[str]:
    """As few commands as sweeps allow that measure exactly these settings again."""
    commands = []
    for bench, request in _REQUESTS.items():
        found = [dict(saved.point.config) for saved in points if saved.point.bench == bench]
        for name, joint in (("ranks", ":"), *((name, ",") for name in ("keep", *request.swept, "dtype"))):
            found = _merged(found, name, joint)
        commands += [request.command_of(config) for config in found]
    return list(dict.fromkeys(commands))


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
