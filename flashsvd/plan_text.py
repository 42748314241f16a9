"""The short text form of a rank plan: `L5-7.q.h6-9: 16 *.up: dense`. Layers and heads count from 1.

    rule   = layers "." projection [ "." heads ] ":" ( rank | "dense" )
    layers = "*" | "L" number [ "-" number ]
    projection = "*" | "qkv" | q | k | v | o | up | gate | down
    heads  = "h" number [ "-" number ]

Rules are separated by spaces, commas, semicolons or new lines; a later rule wins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot

_RULE = re.compile(
    r"(?P<layers>\*|L\d+(?:-\d+)?)\.(?P<slot>\*|[a-z]+)(?:\.(?P<heads>h\d+(?:-\d+)?))?\s*:\s*(?P<value>dense|\d+)(?=[\s,;]|$)"
)
_GAP = re.compile(r"[\s,;]*")
_QKV = ("q", "k", "v")
_MAX_CHARACTERS = 200_000


def parse_rules(shape: ModelShape, text: str) -> dict[tuple[int, str, int], int | None]:
    """Ranks by (layer, slot, unit) for everything the rules name.

    Raises:
        PlanError: a rule that cannot be read, or that names a layer, projection, head or rank that is not there.
    """
    if len(text) > _MAX_CHARACTERS:
        raise PlanError(f"the plan text has {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    values: dict[tuple[int, str, int], int | None] = {}
    position = _end_of_gap(text, 0)
    while position < len(text):
        rule = _RULE.match(text, position)
        if rule is None:
            word = text[position:].split()[0][:40]
            raise PlanError(f"cannot read {word!r}: expected a rule such as 'L4.q.h7: 32' or '*.up: dense'")
        rank = None if rule["value"] == "dense" else int(rule["value"])
        for layer in _span(rule["layers"], len(shape.layers), "layer", "L"):
            for slot in _slots(shape, layer, rule["slot"]):
                for unit in _units(layer, slot, rule["heads"]):
                    _check_rank(layer, slot, rank)
                    values[layer, slot.name, unit] = rank
        position = _end_of_gap(text, rule.end())
    return values


def format_rules(shape: ModelShape, rows: Mapping[tuple[int, str], Sequence[int | None]]) -> str:
    """The shortest rules this writer knows for a whole plan: the common rank of a projection, then what differs."""
    rules: list[str] = []
    names = list(shape.slot_names)
    merged: tuple[str, ...] = _QKV if set(_QKV) <= set(names) and _same_rows(shape, rows, _QKV) else ()
    for name in names:
        if name in merged:
            if name == merged[0]:
                rules += _slot_rules(shape, rows, name, "qkv")
        else:
            rules += _slot_rules(shape, rows, name, name)
    return " ".join(rules)


def _slot_rules(
    shape: ModelShape, rows: Mapping[tuple[int, str], Sequence[int | None]], name: str, label: str
) -> list[str]:
    layers = [index for index in range(len(shape.layers)) if (index, name) in rows]
    common = Counter(rank for index in layers for rank in rows[index, name]).most_common(1)[0][0]
    rules = [f"*.{label}: {_word(common)}"]
    index = 0
    while index < len(layers):
        last = index
        while last + 1 < len(layers) and _next_same(rows, name, layers[last], layers[last + 1]):
            last += 1
        place = f"L{layers[index] + 1}" + (f"-{layers[last] + 1}" if last > index else "")
        row = rows[layers[index], name]
        usual = Counter(row).most_common(1)[0][0]
        if usual != common:
            rules.append(f"{place}.{label}: {_word(usual)}")
        rules += [f"{place}.{label}.{heads}: {_word(rank)}" for heads, rank in _runs(row) if rank != usual]
        index = last + 1
    return rules


def _runs(row: Sequence[int | None]) -> list[tuple[str, int | None]]:
    runs: list[tuple[int, int, int | None]] = []
    for unit, rank in enumerate(row):
        if runs and runs[-1][2] == rank:
            runs[-1] = (runs[-1][0], unit, rank)
        else:
            runs.append((unit, unit, rank))
    return [(f"h{first + 1}" + (f"-{last + 1}" if last > first else ""), rank) for first, last, rank in runs]


def _next_same(
    rows: Mapping[tuple[int, str], Sequence[int | None]], name: str, layer: int, following: int
) -> bool:
    return following == layer + 1 and tuple(rows[layer, name]) == tuple(rows[following, name])


def _same_rows(
    shape: ModelShape, rows: Mapping[tuple[int, str], Sequence[int | None]], names: Sequence[str]
) -> bool:
    return all(
        len({tuple(rows[index, name]) for name in names if (index, name) in rows}) == 1
        for index in range(len(shape.layers))
    )


def _word(rank: int | None) -> str:
    return "dense" if rank is None else str(rank)


def _end_of_gap(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


def _span(word: str, count: int, what: str, letter: str) -> range:
    if word == "*":
        return range(count)
    numbers = [int(part) for part in word[1:].split("-")]
    first, last = numbers[0], numbers[-1]
    if not 1 <= first <= last <= count:
        raise PlanError(f"{what} {word} does not exist: expected {letter}1 to {letter}{count}")
    return range(first - 1, last)


def _slots(shape: ModelShape, layer: int, word: str) -> list[Slot]:
    if word == "*":
        return list(shape.layers[layer])
    return [shape.slot(layer, name) for name in (_QKV if word == "qkv" else (word,))]


def _units(layer: int, slot: Slot, word: str | None) -> range:
    if word is None:
        return range(slot.units)
    if slot.units == 1:
        raise PlanError(
            f"L{layer + 1}.{slot.name} is factored as one matrix and has no heads to name ({word})"
        )
    return _span(word, slot.units, "head", "h")


def _check_rank(layer: int, slot: Slot, rank: int | None) -> None:
    if rank is not None and not 1 <= rank <= slot.full_rank:
        raise PlanError(
            f"L{layer + 1}.{slot.name}: rank must be from 1 to {slot.full_rank} (full rank), got {rank}"
        )
