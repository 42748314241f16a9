"""What is asked of two classifiers about one text, and what they say. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.errors import InputError
from flashsvd.generation.agreement import total_variation
from flashsvd.ranks import RankPlan
from flashsvd.results import Machine, PlanChoice


@dataclass(frozen=True)
class ClassifyRequest:
    """One text for the dense model and for the compressed one on the flash engine."""

    model: str
    text: str
    choice: PlanChoice
    method: str = "svd"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"

    def check(self) -> None:
        """Raises InputError for a text without words."""
        if not self.text.strip():
            raise InputError("the text is empty: give something to classify")


@dataclass(frozen=True)
class ClassPair:
    """Probabilities of both models, in the order of `classes`. tokens: of the text, special ones included; `created` is
    UTC, ISO 8601."""

    created: str
    machine: Machine
    model: str
    method: str
    plan: RankPlan
    dtype: str
    text: str
    tokens: int
    classes: tuple[str, ...]
    dense: tuple[float, ...]
    compressed: tuple[float, ...]

    @property
    def picked(self) -> tuple[int, int]:
        """The likeliest class of dense and of compressed."""
        first, second = (max(range(len(p)), key=p.__getitem__) for p in (self.dense, self.compressed))
        return first, second

    @property
    def moved(self) -> float:
        """Total variation distance of the two, from 0 to 1."""
        return total_variation(self.dense, self.compressed)

    def likeliest(self, count: int) -> tuple[int, ...]:
        """The classes that either model holds likeliest, at most `count`, by the larger of the two probabilities."""
        largest = [max(p, q) for p, q in zip(self.dense, self.compressed, strict=True)]
        return tuple(sorted(range(len(largest)), key=lambda place: (-largest[place], place))[:count])
