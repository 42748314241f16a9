"""Rebuilt and rotated heads in plain torch: a batched product per run, and the turn in the place of the heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.kernels.backend import Backend
from flashsvd.kernels.rebuild.runs import Run
from flashsvd.kernels.rotary import rotate_heads


@torch.no_grad()
def stream_rebuild(
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    runs: Sequence[Run],
    backend: Backend,
) -> torch.Tensor:
    """Heads P_i·U_i + b_i side by side, [B, S, heads·h], turned by cos and sin [B or 1, S, h] where they are.

    Every head is written to its place by the product that makes it. The half types round after the product, after the
    bias and after the turn. backend: of the turn.
    """
    heads, head_dim = sum(run.count for run in runs), second.shape[1]
    out = torch.empty(*p.shape[:2], heads * head_dim, dtype=p.dtype, device=p.device)
    # [M, R], [M, heads, h]
    rows, places = p.flatten(0, 1), out.view(-1, heads, head_dim)
    for run in runs:
        # [count, M, rank], [count, rank, h]
        left = rows[:, run.columns].unflatten(1, (run.count, run.rank)).transpose(0, 1)
        right = second[run.columns].view(run.count, run.rank, head_dim)
        torch.bmm(left, right, out=places[:, run.head : run.head + run.count].transpose(0, 1))
    if bias is not None:
        out.add_(bias)
    # The turn wants two tensors of heads; which heads are q's makes no difference to it.
    q, k = out.tensor_split((heads // 2 * head_dim,), -1)
    rotate_heads(q, k, cos, sin, backend=backend)
    return out
