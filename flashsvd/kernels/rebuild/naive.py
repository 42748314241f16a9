"""The definition of rebuilt and rotated heads: a product for each, and the bias, and the turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.kernels.rebuild.runs import Run
from flashsvd.kernels.rotary.naive import naive_rotary


def naive_rebuild(
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    runs: Sequence[Run],
) -> torch.Tensor:
    """Heads P_i·U_i + b_i side by side, [B, S, heads·h], turned by cos and sin [B or 1, S, h], in p's dtype."""
    # [B, S, h] each
    heads = [
        p[..., at : at + run.rank] @ second[at : at + run.rank]
        for run in runs
        for at in range(run.at, run.columns.stop, run.rank)
    ]
    rebuilt = torch.cat(heads, -1)
    return naive_rotary(rebuilt if bias is None else rebuilt + bias, cos, sin)
