"""Ranks for a budget, by an allocator that runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan

if TYPE_CHECKING:
    from flashsvd.session import Session


@dataclass(frozen=True)
class SearchRequest:
    """At most `amount` parameters or bytes of the whole model."""

    model: str
    kind: Literal["parameters", "bytes"]
    amount: float
    allocator: str = "calibrated"
    method: str = "svd"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"


@dataclass(frozen=True)
class FoundPlan:
    """A plan within a budget. got: what the whole model costs with it; kl and uniform_kl: held-out, if measured."""

    plan: RankPlan
    got: float
    chosen: str
    kl: float | None
    uniform_kl: float | None
    seconds: float


def _run(request: SearchRequest, session: Session, progress: Progress, _: Emit) -> FoundPlan:
    from flashsvd.search.budget import Setting, plan_for_budget

    setting = Setting(
        request.model,
        method=request.method,
        allocator=request.allocator,
        per_head=request.per_head,
        dtype=request.dtype,
        device=request.device,
        samples=0,
    )
    found = plan_for_budget(setting, request.kind, request.amount, session, progress)
    return FoundPlan(found.plan, found.got, found.chosen, found.kl, found.uniform_kl, found.seconds)


KIND = Kind("search", "Search for ranks", SearchRequest, _run)
"""Its results are not kept: the plan that it found is what the page then shows."""
