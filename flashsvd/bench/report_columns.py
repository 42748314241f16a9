"""What stands in the columns of a report, by benchmark. A new column is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from flashsvd.bench.rows import Row
from flashsvd.bench.saved import SavedPoint, ranks_in_words

NONE = "–"
_NOT_RUN = Row("", "", "left out")

Cell = Callable[[SavedPoint], str]


@dataclass(frozen=True)
class Columns:
    """timed: rows whose milliseconds have a column, each with its heading. before and after: the columns on either
    side, by heading. title: what a table is headed with beside model, dtype and machine. legend: how to read it. alone:
    headings of `after` that say something of one row only, with its name."""

    title: str
    before: Mapping[str, Cell]
    timed: Sequence[tuple[str, str]]
    after: Mapping[str, Cell]
    legend: str
    alone: Mapping[str, str] = field(default_factory=dict)

    @property
    def headings(self) -> tuple[str, ...]:
        return (*self.before, *(heading for _, heading in self.timed), *self.after)

    def cells(self, saved: SavedPoint) -> tuple[str, ...]:
        """A point's row."""
        times = (_milliseconds(row_named(saved, name)) for name, _ in self.timed)
        return (
            *(cell(saved) for cell in self.before.values()),
            *times,
            *(cell(saved) for cell in self.after.values()),
        )


def row_named(saved: SavedPoint, name: str) -> Row:
    """A point's row, or one that says that it was not run."""
    return next((row for row in saved.point.rows if row.name == name), _NOT_RUN)


def size_in_words(saved: SavedPoint) -> str:
    """The input of a point."""
    config = saved.point.config
    return f"{config['batch']} x {config['context' if 'context' in config else 'seq']}"


def ranks_of(saved: SavedPoint) -> str:
    """A point's plan; what is no triple of ranks in a form that Markdown leaves alone."""
    words = ranks_in_words(saved.point.config)
    return words if words.startswith("(") else f"`{words}`".replace("|", "\\|")


def _milliseconds(row: Row) -> str:
    if row.latency_ms is None:
        return NONE
    wrong = row.gate is not None and not row.gate.passed
    return f"{row.latency_ms.p50:.2f}{' (wrong)' if wrong else ''}"


def _of(name: str, words: Callable[[Row], str]) -> Cell:
    return lambda saved: words(row_named(saved, name))


def _of_flash(words: Callable[[Row], str]) -> Cell:
    """Of flash as a graph, or without one where that was left out or not asked for."""

    def cell(saved: SavedPoint) -> str:
        graph = row_named(saved, "flash-graph")
        return words(row_named(saved, "flash") if graph.status == "left out" else graph)

    return cell


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def _binary(value: int | None, unit: int) -> str:
    return NONE if value is None else f"{value / unit:.1f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"


def _whole(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _speedup(row: Row) -> str:
    return _ratio(row.speedup)


def _peak_mib(row: Row) -> str:
    return _binary(row.peak_bytes, 2**20)


_MEMORY: Mapping[str, Cell] = {
    "dense MiB": _of("dense", _peak_mib),
    "flash MiB": _of("flash", _peak_mib),
    "less memory": _of("flash", lambda row: _ratio(row.peak_reduction)),
}
RED = "– where a run failed or was left out, and for a ratio of outputs that did not both pass the check."

_ENCODER = Columns(
    title="",
    before={"B x S": size_in_words, "ranks": ranks_of},
    timed=(
        ("dense", "dense ms"),
        ("dense-compile", "dense compiled ms"),
        ("lowrank", "low-rank ms"),
        ("lowrank-compile", "low-rank compiled ms"),
        ("flash", "flash ms"),
        ("flash-graph", "flash graph ms"),
    ),
    after={
        "flash speed-up": _of("flash", _speedup),
        "graph speed-up": _of("flash-graph", _speedup),
        **_MEMORY,
    },
    legend="Medians. Speed-up is over the compiled dense model, less memory is the dense model's peak activation "
    "memory over that of flash.",
)
_DECODE = Columns(
    title="decode",
    before={"B x context": size_in_words, "ranks": ranks_of},
    timed=(
        ("dense", "dense ms"),
        ("dense-static-compile", "dense static compiled ms"),
        ("dense-generate", "dense generate() ms"),
        ("dense-graph", "dense graph ms"),
        ("lowrank", "low-rank ms"),
        ("lowrank-static-compile", "low-rank static compiled ms"),
        ("flash", "flash ms"),
        ("flash-graph", "flash graph ms"),
        ("flash-graph-rank", "rank cache graph ms"),
        ("flash-generate", "flash generate() ms"),
    ),
    after={
        "tokens/s": _of_flash(lambda row: _whole(row.tokens_per_second)),
        "launches": _of_flash(lambda row: _whole(row.launches)),
        "floor": _of_flash(lambda row: _share(row.bandwidth_share)),
        "speed-up": _of_flash(_speedup),
        "over dense graph": _of_flash(lambda row: _ratio(row.runtime_speedup)),
        "dense GiB": _of("dense", lambda row: _binary(row.weight_bytes, 2**30)),
        "flash GiB": _of_flash(lambda row: _binary(row.weight_bytes, 2**30)),
        "cache GiB": _of_flash(lambda row: _binary(row.kv_bytes, 2**30)),
        "rank cache GiB": _of("flash-graph-rank", lambda row: _binary(row.kv_bytes, 2**30)),
    },
    legend="Decode: medians of one token of every sequence. From tokens/s on, columns are of flash as a graph, where "
    "there is one: launches by the CPU for a token; the time in which the bytes that a token must read could be "
    "copied, over its time; speed-up over transformers with a static cache under torch.compile, and over the dense "
    "weights in the same runtime. generate(): as a caller sees tokens come, on the host's clock.",
    alone={"dense GiB": "dense", "rank cache GiB": "flash-graph-rank"},
)
_PREFILL = Columns(
    title="prefill",
    before={"B x S": size_in_words, "ranks": ranks_of},
    timed=(
        ("dense", "dense ms"),
        ("dense-compile", "dense compiled ms"),
        ("dense-micro", "dense one by one ms"),
        ("lowrank", "low-rank ms"),
        ("lowrank-compile", "low-rank compiled ms"),
        ("flash", "flash ms"),
        ("flash-graph", "flash graph ms"),
    ),
    after={
        "tokens/s": _of_flash(lambda row: _whole(row.tokens_per_second)),
        "speed-up": _of_flash(_speedup),
        "dense MiB": _of("dense", _peak_mib),
        "flash MiB": _of_flash(_peak_mib),
        "less memory": _of_flash(lambda row: _ratio(row.peak_reduction)),
    },
    legend="Prefill: medians of reading all prompts into a cache. From tokens/s on, columns are of flash as a graph, "
    "where there is one. Speed-up and less memory are over the dense model, eager with SDPA; memory is peak "
    "activation memory beside weights and cache.",
)

COLUMNS: Mapping[str, Columns] = MappingProxyType(
    {"encoder": _ENCODER, "decode": _DECODE, "prefill": _PREFILL}
)
"""By the name of the benchmark."""
