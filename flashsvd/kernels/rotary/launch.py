"""Starts the Triton rotary kernel."""

from __future__ import annotations

import math

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.rotary.tiles import rotary_tiles
from flashsvd.kernels.rotary.triton_kernel import rotary_kernel
from flashsvd.kernels.starter import Launch


def prepare_rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Launch:
    """What turns q [B, S, H·h] and k [B, S, Hk·h] by cos and sin [B or 1, S, h] that look like these.

    Raises InputError for float64.
    """
    check_compiled(q)
    batch, seq, _ = q.shape
    head_dim = cos.shape[-1]
    heads, kv_heads = q.shape[-1] // head_dim, k.shape[-1] // head_dim
    tiles = rotary_tiles(seq, heads, kv_heads, head_dim)
    blocks = math.ceil(seq / tiles.block_m)
    q_programs = heads // tiles.q_group
    return Launch(
        rotary_kernel,
        (batch * blocks, q_programs + kv_heads // tiles.k_group),
        ("q", "k", "cos", "sin"),
        {
            "seq": seq,
            "blocks": blocks,
            "q_batch_stride": q.stride(0),
            "q_stride": q.stride(1),
            "k_batch_stride": k.stride(0),
            "k_stride": k.stride(1),
            "cos_batch_stride": cos.stride(0) if len(cos) > 1 else 0,
            "cos_stride": cos.stride(1),
            "sin_batch_stride": sin.stride(0) if len(sin) > 1 else 0,
            "sin_stride": sin.stride(1),
            "HALF": head_dim // 2,
            "Q_PROGRAMS": q_programs,
            "Q_GROUP": tiles.q_group,
            "K_GROUP": tiles.k_group,
            "BLOCK_M": tiles.block_m,
            "BLOCK_H": tiles.block_h,
        },
        q.device,
        num_warps=tiles.num_warps,
        num_stages=1,
    )
