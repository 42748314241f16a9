"""A contest of decoders: judged by higher precision and by their tokens, in as many groups as their caches need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flashsvd.bench.contest import Contestant, Terms, forget, run_contest
from flashsvd.bench.decode_reference import DecodeJudge
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.rows import Row, with_ratios
from flashsvd.progress import Progress


def run_decoders(
    setting: Setting,
    table: Mapping[str, Callable[[Setting], Contestant]],
    engines: Sequence[str],
    terms: Terms,
    progress: Progress,
    *,
    judged_tokens: int,
    tokens: int,
) -> tuple[str, tuple[Row, ...]]:
    """A row of the table for every engine named, and how they were timed, where that is not all in turn.

    judged_tokens: steps that are judged after the prompts. tokens: that a row's latency is the time of.

    Raises:
        OutOfMemoryError: not even one cache fits.
    """
    names = tuple(dict.fromkeys(engines))
    groups = together(names, setting.cache_bytes, setting.room(names))
    progress("Decoding in higher precision", 0.0)
    judge = setting.judge(names, judged_tokens)
    contestants = {name: table[name](setting) for name in names}
    rows: list[Row] = []
    for group in groups:
        chosen = {name: contestants[name] for name in group}
        rows += (_more(row, judge, tokens) for row in run_contest(chosen, judge, terms, progress))
        forget(terms.device)
    words = f"; timed in {len(groups)} groups, as not all caches fit at once" if len(groups) > 1 else ""
    return words, with_ratios(tuple(rows), terms.baselines)


def together(names: Sequence[str], held_bytes: int, room_bytes: int) -> list[tuple[str, ...]]:
    """Groups of rows, in order, that each hold `held_bytes` and fit into a room at the same time; at least one each.

    >>> together(("dense", "lowrank", "flash"), held_bytes=30, room_bytes=70)
    [('dense', 'lowrank'), ('flash',)]
    """
    size = max(1, room_bytes // max(1, held_bytes))
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def _more(row: Row, judge: DecodeJudge, tokens: int) -> Row:
    """A row with what follows from its latency and from its greedy tokens."""
    found = judge.agreements.get(row.name)
    return replace(
        row,
        tokens_per_second=None if row.latency_ms is None else tokens * 1e3 / row.latency_ms.p50,
        agreement=None if found is None else found.share,
        differences=None if found is None else found.differences,
    )
