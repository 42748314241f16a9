"""Labels as they come -> class indices in the order of a model's head, or the targets of a regression. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashsvd.errors import InputError

if TYPE_CHECKING:
    from flashsvd.models.load import LoadedModel

_NAMELESS = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Head:
    """The classes of a sequence classifier, in the order of its logits. One class: a regression."""

    model: str
    classes: tuple[str, ...]

    @property
    def named(self) -> bool:
        """Whether the names mean something: transformers writes LABEL_0, LABEL_1 where nobody said."""
        return not all(_NAMELESS.fullmatch(name) for name in self.classes)


def head_of(loaded: LoadedModel | None) -> Head | None:
    """The head of a sequence classifier; None for any other model."""
    if loaded is None or not is_classifier(loaded):
        return None
    names = loaded.model.config.id2label or {}
    return Head(loaded.name, tuple(str(name) for _, name in sorted(names.items())))


def is_classifier(loaded: LoadedModel) -> bool:
    """Whether the model gives labels to whole sequences."""
    return type(loaded.model).__name__.endswith("ForSequenceClassification")


@dataclass(frozen=True)
class Labels:
    """classes: () for a regression. by_split: a class index or a target per row."""

    classes: tuple[str, ...]
    by_split: Mapping[str, tuple[int, ...] | tuple[float, ...]]


def read_labels(
    where: str, columns: Mapping[str, Sequence[Any]], names: Sequence[str] | None, head: Head | None
) -> Labels:
    """Reads the label column of every split.

    where: what to call it in messages. names: of the classes, where the source gives them with whole numbers.
    Words are classes: those of the head where it names its own, else in sorted order. Whole numbers are class
    indices. Other numbers, and all numbers for a head of one output, are the targets of a regression.

    Raises:
        InputError: a label is missing, NaN, negative or of another type than the others; or they do not fit the
            head.
    """
    for split, values in columns.items():
        for row, value in enumerate(values):
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                raise InputError(
                    f"{where}: row {row + 1} of {split} has no label (missing or NaN); "
                    "remove the row or label it"
                )
    values = [value for column in columns.values() for value in column]
    if all(isinstance(value, str) for value in values):
        classes = tuple(sorted(set(values)))
        if head is not None and head.named and set(classes) <= set(head.classes):
            classes = head.classes
        return _classes(where, columns, classes, head, {name: index for index, name in enumerate(classes)})
    if not all(isinstance(value, bool | int | float) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise InputError(f"{where}: labels must be all words or all numbers, got {kinds}")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{where}: a label is infinite; labels must be finite numbers")
    several = names is not None or (head is not None and len(head.classes) > 1)
    if not several and (head is not None or any(isinstance(value, float) for value in values)):
        return Labels((), {split: tuple(map(float, column)) for split, column in columns.items()})
    odd = next((value for value in values if value != int(value) or value < 0), None)
    if odd is not None:
        what = "-1 stands for a hidden label" if odd == -1 else "a class is a whole number from 0"
        raise InputError(f"{where}: label {odd:g} is no class: {what}")
    highest = int(max(values, default=-1))
    if names is not None:
        if highest >= len(names):
            raise InputError(f"{where}: label {highest} is beyond the {len(names)} classes that it names")
        return _classes(where, columns, tuple(names), head, {i: i for i in range(len(names))})
    count = highest + 1 if head is None else len(head.classes)
    if highest >= count and head is not None:
        raise InputError(
            f"{where}: label {highest} is beyond the {count} classes of {head.model} (0 to {count - 1})"
        )
    classes = head.classes if head else tuple(str(index) for index in range(count))
    return Labels(classes, {split: tuple(map(int, column)) for split, column in columns.items()})


def _classes(
    where: str,
    columns: Mapping[str, Sequence[Any]],
    classes: tuple[str, ...],
    head: Head | None,
    index: Mapping[Any, int],
) -> Labels:
    ordered, position = match_classes(where, classes, head)
    return Labels(
        ordered,
        {split: tuple(position[index[value]] for value in column) for split, column in columns.items()},
    )


def match_classes(
    where: str, classes: tuple[str, ...], head: Head | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes in the order of the head's logits, and the logit of each class given.

    A head that names its classes may have them in another order or spell them in capitals; published models of one
    task differ in that.

    >>> match_classes("mnli", ("entailment", "neutral"), Head("m", ("NEUTRAL", "ENTAILMENT")))
    (('NEUTRAL', 'ENTAILMENT'), (1, 0))

    Raises:
        InputError: the head has another number of classes, or names others.
    """
    if head is None:
        return classes, tuple(range(len(classes)))
    if len(classes) != len(head.classes):
        raise InputError(
            f"{where} has {len(classes)} classes ({_listed(classes)}) but the head of {head.model} has "
            f"{len(head.classes)} ({_listed(head.classes)}); use a model that was trained for it"
        )
    if not head.named:
        return classes, tuple(range(len(classes)))
    places = {name.casefold(): place for place, name in enumerate(head.classes)}
    unknown = [name for name in classes if name.casefold() not in places]
    if unknown or len(places) < len(head.classes):
        raise InputError(
            f"{where} has the classes {_listed(classes)} but {head.model} names its own "
            f"{_listed(head.classes)}; rename them in the file, or id2label in the model's config.json"
        )
    return head.classes, tuple(places[name.casefold()] for name in classes)


def check_regression(where: str, head: Head | None) -> None:
    """Raises InputError for a head that gives classes where a number is wanted."""
    if head is not None and len(head.classes) != 1:
        raise InputError(
            f"{where} has numbers as labels but the head of {head.model} has {len(head.classes)} classes; "
            "use a model that was trained for it"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
