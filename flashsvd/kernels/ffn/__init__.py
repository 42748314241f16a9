"""The feed-forward block between its outer factors, streamed over the wide dimension.

FFN v1 of FlashSVD (arXiv 2508.01506): t = act(P·U1ᵀ + b1) is made tile by tile and folded into S = t·V2ᵀ, so
the wide activation [M, D] never exists.
"""

from __future__ import annotations

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.ffn.activation import ACTIVATIONS
from flashsvd.kernels.ffn.naive import naive_ffn
from flashsvd.kernels.ffn.stream import stream_ffn

__all__ = ["ACTIVATIONS", "flash_svd_ffn"]


@torch.no_grad()
def flash_svd_ffn(
    p: torch.Tensor,
    u1: torch.Tensor,
    b1: torch.Tensor | None,
    v2: torch.Tensor,
    *,
    activation: str,
    backend: str | None = None,
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ without the [M, D] activation; inference only, no gradients.

    p: [..., R1], rank-space input x·V1ᵀ (x itself when the up projection is dense and u1 its weight).
    u1: [D, R1]. b1: [D] or None. v2: [R2, D] (the whole down weight when that is dense).
    activation: "gelu" (erf), "gelu_tanh" or "relu". backend: see `flashsvd.kernels.backend.resolve`.

    Returns [..., R2] in p's dtype, contiguous. Raises InputError when shapes, dtypes, devices or the
    activation do not fit, DeviceError when the backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, FFN v1.

    >>> from flashsvd.kernels import flash_svd_ffn
    >>> p, u1, v2 = torch.randn(2, 5, 8), torch.randn(64, 8), torch.randn(6, 64)
    >>> flash_svd_ffn(p, u1, None, v2, activation="gelu").shape
    torch.Size([2, 5, 6])
    """
    check_activation("p", p)
    if p.dim() < 1 or u1.dim() != 2 or v2.dim() != 2:
        raise InputError(
            f"p, u1, v2 must be [..., R1], [D, R1], [R2, D], got {list(p.shape)}, {list(u1.shape)}, "
            f"{list(v2.shape)}"
        )
    width, rank_in = u1.shape
    rank_out = v2.shape[0]
    if min(width, rank_in, rank_out) < 1:
        raise InputError(f"D, R1 and R2 must be at least 1, got {width}, {rank_in} and {rank_out}")
    check_tensor("p", p, (*p.shape[:-1], rank_in), p, like_name="p")
    check_tensor("u1", u1, (width, rank_in), p, like_name="p")
    check_tensor("v2", v2, (rank_out, width), p, like_name="p")
    if b1 is not None:
        check_tensor("b1", b1, (width,), p, like_name="p")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    chosen = resolve(backend, p.device)
    rows = p.reshape(-1, rank_in)
    if rows.shape[0] == 0:
        out = p.new_zeros(0, rank_out)
    elif chosen == "naive":
        out = naive_ffn(rows, u1, b1, v2, activation)
    elif chosen == "torch":
        out = stream_ffn(rows, u1, b1, v2, activation)
    else:
        from flashsvd.kernels.ffn.launch import launch_ffn

        out = launch_ffn(rows, u1, b1, v2, activation)
    return out.reshape(*p.shape[:-1], rank_out)
