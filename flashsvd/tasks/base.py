"""What a task is: texts, their labels, and the metric that they are scored with. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashsvd.errors import InputError

Split = Literal["train", "validation"]
"""train is for calibration, probes and fine-tuning; validation is for scores and nothing else."""

Kind = Literal["classification", "regression", "language"]
MetricName = Literal["accuracy", "f1", "matthews", "pearson", "perplexity"]


@dataclass(frozen=True)
class Examples:
    """Texts in the order of their source. second: the other sentence of pair tasks; labels: class indices, or the
    targets of a regression; None for plain text.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: tuple[int, ...] | tuple[float, ...] | None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: list[int]) -> Examples:
        """The examples of these rows, in this order."""
        return Examples(
            tuple(self.first[row] for row in rows),
            None if self.second is None else tuple(self.second[row] for row in rows),
            None if self.labels is None else tuple(self.labels[row] for row in rows),
        )


@dataclass(frozen=True)
class Task:
    """A named source of examples. metric: the headline one; classes: () for regression and language.

    `load(split)` raises InputError where the split cannot be read. positive: the class whose F1 is the binary one.
    """

    name: str
    title: str
    source: str
    kind: Kind
    metric: MetricName
    classes: tuple[str, ...]
    load: Callable[[Split], Examples]
    positive: int = 1


def sample(examples: Examples, count: int, seed: int) -> Examples:
    """At most `count` examples, drawn without replacement.

    >>> sample(Examples(("a", "b", "c"), None, (0, 1, 2)), 2, seed=0)
    Examples(first=('c', 'b'), second=None, labels=(2, 1))

    Raises:
        InputError: fewer than one asked for, or a negative seed.
    """
    if count < 1:
        raise InputError(f"samples must be at least 1, got {count}")
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    # The draw of pandas' DataFrame.sample, so that a bundled set gives the pieces that `flashsvd.data` gives.
    draw = np.random.RandomState(seed)
    return examples.take(draw.choice(len(examples), size=min(count, len(examples)), replace=False).tolist())
