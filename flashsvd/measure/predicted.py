"""Memory timelines that are computed, not measured: what to ask for, and what comes back. No torch until it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import ModelInfo, PlanChoice


@dataclass(frozen=True)
class PredictRequest:
    """A forward of `batch` sequences of `seq` tokens whose memory is wanted, by each engine as it runs in plain torch.

    cached: a decoder keeps its keys and values, as for a prompt that text is to follow.
    """

    model: str
    choice: PlanChoice
    method: str = "svd"
    per_head: bool = True
    batch: int = 8
    seq: int = 256
    dtype: str = "fp32"
    engines: tuple[str, ...] = ("dense", "lowrank", "flash")
    cached: bool = False


@dataclass(frozen=True)
class PredictedRun:
    """One engine's timeline. `computed_layers` of `layers` were run, the others are repeats of one like them.

    sources: by module path, with layer numbers as *, the file and line of the class that runs there.
    """

    engine: str
    weight_bytes: int
    peak_activation_bytes: int
    layers: int
    computed_layers: int
    sources: Mapping[str, str] = field(repr=False, compare=False)
    timeline: pd.DataFrame = field(repr=False, compare=False)


@dataclass(frozen=True)
class Prediction:
    """What was asked for. `missing`: engines that cannot be predicted, and why."""

    request: PredictRequest
    model: ModelInfo
    plan: RankPlan
    runs: tuple[PredictedRun, ...]
    missing: Mapping[str, str]
    seconds: float

    def run(self, engine: str) -> PredictedRun | None:
        """The run of one engine, or None where there is none."""
        return next((run for run in self.runs if run.engine == engine), None)


def predict(request: PredictRequest, progress: Progress | None = None) -> Prediction:
    """Runs every engine on tensors without memory (`flashsvd.measure.predicted_run`).

    Raises:
        InputError, PlanError, ModelError: see where each is made.
    """
    from flashsvd.measure.predicted_run import predict as run

    return run(request, progress)
