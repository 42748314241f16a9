"""Do two engines compute the same function? Logits and last hidden states against a higher precision."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.gate import BASELINE_FACTOR, LIMITS, relative_error
from flashsvd.models.family import Family
from flashsvd.results import GateReport

_ROWS = 4


def check_input(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first few rows of a batch, with padding left, right and in none, and their mask [B, S]."""
    ids = ids[:_ROWS]
    mask = torch.ones_like(ids)
    cut = ids.shape[1] // 3
    if len(ids) > 1 and cut:
        mask[1, -cut:] = 0
    if len(ids) > 2 and cut:
        mask[2, :cut] = 0
    return ids, mask


@dataclass(frozen=True)
class Outputs:
    """What a model made of an input, in float64 on the CPU: the last block's states at unpadded places
    [tokens, hidden], and the logits where there are any."""

    states: torch.Tensor
    logits: torch.Tensor | None


@torch.inference_mode()
def outputs(model: Any, family: Family, ids: torch.Tensor, mask: torch.Tensor) -> Outputs:
    """Runs a model on token ids [B, S] with a padding mask [B, S]."""
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    handle = family.layers(model.base_model)[-1].register_forward_hook(keep)
    try:
        result = model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    logits = getattr(result, "logits", None)
    return Outputs(kept[0][mask.bool()].double().cpu(), None if logits is None else logits.double().cpu())


def worst_error(mine: Outputs, reference: Outputs) -> float:
    """The larger relative error ‖mine - reference‖ / ‖reference‖ of states and logits; inf where not finite."""
    states = relative_error(mine.states, reference.states)
    if mine.logits is None or reference.logits is None:
        return states
    return max(states, relative_error(mine.logits, reference.logits))


def reference_outputs(
    lowrank: Any, family: Family, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[Outputs, str]:
    """What the low-rank model gives in a higher precision: float64 for float32, float32 for the halves."""
    wide = torch.float64 if lowrank.dtype == torch.float32 else torch.float32
    name = "lowrank, fp64" if wide == torch.float64 else "lowrank, fp32"
    return outputs(copy.deepcopy(lowrank).to(wide), family, ids, mask), name


def judge(
    mine: Outputs,
    lowrank: Outputs,
    reference: Outputs,
    *,
    name: str,
    dtype: torch.dtype,
    sublayers: int,
) -> GateReport:
    """Passes an engine that is at most twice as far from the reference as the low-rank engine in the same dtype,
    and within what `sublayers` ops, each at the kernels' limit, can lose together.

    The first binds in practice. The second catches a low-rank engine that is itself wrong. Judged on the states
    alone: a handful of logits is too small a sample for a factor of two (seen on bert-large, bf16, four inputs:
    2.4e-2 to 5.7e-2 between implementations whose states all stood at 1.5e-2).
    """
    error = relative_error(mine.states, reference.states)
    baseline = relative_error(lowrank.states, reference.states)
    if mine.logits is not None and not torch.isfinite(mine.logits).all():
        error = math.inf
    exact = torch.finfo(dtype).eps / 4 * math.sqrt(sublayers)
    limit = min(LIMITS[dtype] * sublayers, max(BASELINE_FACTOR * baseline, exact))
    return GateReport(error <= limit, error, baseline, limit, name)
