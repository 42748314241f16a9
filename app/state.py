"""The whole state of a page as one frozen value, and its two forms: session and URL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flashsvd.errors import PlanError
from flashsvd.methods import method_named
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest, Comparison, CurveRequest, PlanChoice, SpectraRequest

DTYPES = ("fp32", "fp16", "bf16")
CURVE_KEEPS = tuple(step / 10 for step in range(1, 11))
_LARGEST = 65_536


@dataclass(frozen=True)
class Settings:
    """What the controls say. `plan` is the short text; None means the same keep everywhere."""

    model: str = "stdlib-bert"
    method: str = "svd"
    keep: float = 0.5
    plan: str | None = None
    batch: int = 8
    seq: int = 256
    dtype: str = "fp32"
    per_head: bool = True

    def choice(self) -> PlanChoice:
        return PlanChoice(keep=self.keep) if self.plan is None else PlanChoice(text=self.plan)

    def planned(self, shape: ModelShape) -> ModelShape:
        """A model's shape as it is to be factored."""
        return method_named(self.method).shape(shape.with_per_head(self.per_head))

    def rank_plan(self, shape: ModelShape) -> RankPlan:
        """The canonical plan. Raises PlanError where the text does not fit the model."""
        return self.choice().resolve(self.planned(shape))

    def compare_request(self) -> CompareRequest:
        return CompareRequest(
            self.model, self.choice(), self.method, self.per_head, self.batch, self.seq, self.dtype
        )

    def curve_request(self) -> CurveRequest:
        return CurveRequest(self.model, CURVE_KEEPS, self.method, self.per_head, self.dtype)

    def spectra_request(self) -> SpectraRequest:
        return SpectraRequest(self.model, self.method, self.per_head)


def to_query(settings: Settings) -> dict[str, str]:
    """The permalink's parameters, in a fixed order."""
    plan = {"keep": f"{settings.keep:g}"} if settings.plan is None else {"plan": settings.plan}
    return {
        "model": settings.model,
        "method": settings.method,
        **plan,
        "batch": str(settings.batch),
        "seq": str(settings.seq),
        "dtype": settings.dtype,
        "heads": "each" if settings.per_head else "whole",
    }


def from_query(
    query: Mapping[str, str], default: Settings, methods: tuple[str, ...]
) -> tuple[Settings, list[str]]:
    """Reads `to_query`; what cannot be read keeps its default and gives one line. The plan is checked later."""
    problems: list[str] = []

    def problem(name: str, expected: str, got: str) -> None:
        problems.append(f"The link's {name} must be {expected}, got {got[:40]!r}; the default is used.")

    def number(name: str, otherwise: int) -> int:
        text = query.get(name)
        if text is None:
            return otherwise
        if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _LARGEST:
            return int(text)
        problem(name, f"a whole number from 1 to {_LARGEST}", text)
        return otherwise

    def word(name: str, options: tuple[str, ...], otherwise: str) -> str:
        text = query.get(name, otherwise)
        if text in options:
            return text
        problem(name, "one of " + ", ".join(options), text)
        return otherwise

    keep, text = default.keep, query.get("keep")
    if text is not None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if 0 < value <= 1:
            keep = value
        else:
            problem("keep", "above 0 and at most 1", text)
    settings = Settings(
        model=query.get("model", default.model).strip() or default.model,
        method=word("method", methods, default.method),
        keep=keep,
        plan=query.get("plan", "").strip() or None,
        batch=number("batch", default.batch),
        seq=number("seq", default.seq),
        dtype=word("dtype", DTYPES, default.dtype),
        per_head=word("heads", ("each", "whole"), "each" if default.per_head else "whole") == "each",
    )
    return settings, problems


def settings_of(comparison: Comparison) -> Settings:
    """The settings that a finished run answers."""
    plan = comparison.plan
    keep = _uniform_keep(plan)
    return Settings(
        model=comparison.model.name,
        method=comparison.method,
        keep=plan.keep if keep is None else keep,
        plan=plan.to_text() if keep is None else None,
        batch=comparison.batch,
        seq=comparison.seq,
        dtype=comparison.dtype,
        per_head=any(slot.units > 1 for _, slot in plan.shape) or not any(s.heads for _, s in plan.shape),
    )


def answers(comparison: Comparison, settings: Settings, plan: RankPlan | None) -> bool:
    """Whether a finished run is what the controls ask for."""
    return (
        comparison.model.name == settings.model
        and comparison.method == settings.method
        and (comparison.batch, comparison.seq, comparison.dtype)
        == (settings.batch, settings.seq, settings.dtype)
        and plan is not None
        and comparison.plan == plan
    )


def read_plan(text: str, shape: ModelShape, base: RankPlan | None = None) -> RankPlan:
    """A typed plan. Raises PlanError for an empty one too: all dense must be said, not implied."""
    if not text.strip():
        raise PlanError("the plan is empty: write rules such as '*.qkv: 32 *.up: dense'")
    return RankPlan.from_text(shape, text, base)


def _uniform_keep(plan: RankPlan) -> float | None:
    from flashsvd.allocate import uniform

    return next((p / 100 for p in range(1, 101) if uniform(plan.shape, p / 100) == plan), None)
