"""Which columns of a table are the texts and the labels, and what the rows make."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from flashsvd.errors import InputError
from flashsvd.tasks.base import Examples, Kind, MetricName, Split, Task
from flashsvd.tasks.labels import Head, check_regression, read_labels
from flashsvd.tasks.tables import Columns

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
)
_TEXTS = ("text", "sentence", "sentence1", "premise", "question", "review", "content")
_LABELS = ("label", "labels", "gold")

HELD_OUT_SHARE = 5
"""One row in so many is held out where a source has no validation split."""


@dataclass(frozen=True)
class Choice:
    """Columns by name; None where they are to be guessed."""

    text: str | None = None
    second: str | None = None
    label: str | None = None


def labelled_task(
    name: str,
    title: str,
    source: str,
    splits: Mapping[Split, Columns],
    choice: Choice,
    *,
    head: Head | None,
    plain: bool,
    names: tuple[str, ...] | None = None,
) -> Task:
    """A task of the tables of both splits.

    plain: for a model that gives no labels to sequences; labels are left out then, and need not be there.

    Raises:
        InputError: a column is missing, a text is none, or a label cannot be read.
    """
    text, second = _text_columns(name, splits, choice)
    label = None if plain else _label_column(name, splits, choice)
    labels = None
    if label is not None:
        labels = read_labels(name, {split: splits[split][label] for split in splits}, names, head)
        if not labels.classes:
            check_regression(name, head)
    examples: dict[Split, Examples] = {
        split: Examples(
            _texts(name, split, columns, text),
            None if second is None else _texts(name, split, columns, second),
            None if labels is None else labels.by_split[split],
        )
        for split, columns in splits.items()
    }
    kind: tuple[Kind, MetricName] = ("language", "perplexity")
    if labels is not None:
        kind = ("classification", "accuracy") if labels.classes else ("regression", "pearson")
    classes = () if labels is None else labels.classes
    return Task(name, title, source, *kind, classes, lambda split: examples[split])


def split_rows(name: str, columns: Columns, choice: Choice, seed: int = 0) -> dict[Split, Columns]:
    """One table in two, by a hash of each row's first text: equal texts are on the same side.

    Raises:
        InputError: too few texts for a row on either side.
    """
    text, _ = _text_columns(name, {"train": columns}, choice)
    held_out = [is_held_out(str(value), seed) for value in columns[text]]
    found: dict[Split, Columns] = {}
    sides: tuple[tuple[Split, bool], ...] = (("train", False), ("validation", True))
    for split, side in sides:
        rows = [row for row, mine in enumerate(held_out) if mine is side]
        if not rows:
            raise InputError(
                f"{name} has {len(held_out)} rows, too few to hold some out: "
                "give a folder with train and validation files"
            )
        found[split] = {column: [values[row] for row in rows] for column, values in columns.items()}
    return found


def is_held_out(text: str, seed: int = 0) -> bool:
    """Whether a text is of the held-out fifth: the same on every machine, whatever is around it."""
    digest = hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def _text_columns(name: str, splits: Mapping[Split, Columns], choice: Choice) -> tuple[str, str | None]:
    there = _common(name, splits)
    for column in (choice.text, choice.second):
        _check_there(name, column, there)
    if choice.text is not None:
        return choice.text, choice.second
    for first, second in _PAIRS:
        if first in there and second in there and choice.second in (None, second):
            return first, second
    for first in _TEXTS:
        if first in there and first != choice.second:
            return first, choice.second
    raise InputError(
        f"{name}: no column of texts found among {', '.join(there)}; say which it is with {name}:text=COLUMN"
    )


def _label_column(name: str, splits: Mapping[Split, Columns], choice: Choice) -> str:
    there = _common(name, splits)
    _check_there(name, choice.label, there)
    if choice.label is not None:
        return choice.label
    for column in _LABELS:
        if column in there:
            return column
    raise InputError(
        f"{name}: no label column found among {', '.join(there)}; say which it is with {name}:label=COLUMN"
    )


def _check_there(name: str, column: str | None, there: list[str]) -> None:
    if column is not None and column not in there:
        raise InputError(f"{name} has no column {column!r}: it has {', '.join(there)}")


def _common(name: str, splits: Mapping[Split, Columns]) -> list[str]:
    """Column names that every split has, in the order of the first."""
    tables = list(splits.values())
    found = [column for column in tables[0] if all(column in table for table in tables)]
    if not found:
        raise InputError(f"{name}: the train and validation files have no column in common")
    return found


def _texts(name: str, split: str, columns: Columns, column: str) -> tuple[str, ...]:
    for row, value in enumerate(columns[column]):
        # A column of a CSV may be all numbers and still be meant as text.
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value != value:
            raise InputError(
                f"{name}: row {row + 1} of {split} has no text in column {column!r}, got {str(value)[:40]!r}"
            )
    return tuple(str(value) for value in columns[column])
