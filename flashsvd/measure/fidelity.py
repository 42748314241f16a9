"""Do two engines compute the same function? Logits and last hidden states against a higher precision."""

from __future__ import annotations

import copy
import math
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


@torch.inference_mode()
def outputs(model: Any, family: Family, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Logits (where there are any) and the last block's hidden states at unpadded places, in float64 on the CPU."""
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    handle = family.layers(model.base_model)[-1].register_forward_hook(keep)
    try:
        result = model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    states = [kept[0][mask.bool()]]
    logits = getattr(result, "logits", None)
    return [state.double().cpu() for state in (states if logits is None else [logits, *states])]


def worst_error(mine: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """The largest relative error ‖mine - reference‖ / ‖reference‖ of the pairs; inf where one is not finite."""
    return max(relative_error(left, right) for left, right in zip(mine, reference, strict=True))


def reference_outputs(
    lowrank: Any, family: Family, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[torch.Tensor], str]:
    """What the low-rank model gives in a higher precision: float64 for float32, float32 for the halves."""
    wide = torch.float64 if lowrank.dtype == torch.float32 else torch.float32
    name = "lowrank, fp64" if wide == torch.float64 else "lowrank, fp32"
    return outputs(copy.deepcopy(lowrank).to(wide), family, ids, mask), name


def judge(
    mine: list[torch.Tensor],
    lowrank: list[torch.Tensor],
    reference: list[torch.Tensor],
    *,
    name: str,
    dtype: torch.dtype,
    sublayers: int,
) -> GateReport:
    """Passes an engine that is at most twice as far from the reference as the low-rank engine in the same dtype,
    and within what `sublayers` ops, each at the kernels' limit, can lose together.

    The first binds in practice. The second catches a low-rank engine that is itself wrong.
    """
    error, baseline = worst_error(mine, reference), worst_error(lowrank, reference)
    exact = torch.finfo(dtype).eps / 4 * math.sqrt(sublayers)
    limit = min(LIMITS[dtype] * sublayers, max(BASELINE_FACTOR * baseline, exact))
    return GateReport(error <= limit, error, baseline, limit, name)
