"""Starts the Triton feed-forward kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import contextlib
import math

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.ffn.triton_kernel import ffn_kernel
from flashsvd.kernels.tiles import FfnTiles, ffn_tiles


def launch_ffn(
    p: torch.Tensor, u1: torch.Tensor, b1: torch.Tensor | None, v2: torch.Tensor, activation: str
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ, [M, R2], by `ffn_kernel`; arguments are already checked.

    Source: FlashSVD, arXiv 2508.01506, FFN v1.
    """
    if p.dtype == torch.float64:
        raise InputError(
            "the Triton kernel takes float16, bfloat16 or float32, got torch.float64; use backend 'torch'"
        )
    rows, rank_in = p.shape
    width, rank_out = u1.shape[0], v2.shape[0]
    tiles = ffn_tiles(rows, width, rank_in, rank_out, p.dtype)
    out = torch.empty(rows, rank_out, dtype=p.dtype, device=p.device)
    u1 = u1 if u1.stride(1) == 1 else u1.contiguous()
    v2 = v2 if v2.stride(1) == 1 else v2.contiguous()
    grid = (math.ceil(rows / tiles.block_m) * math.ceil(rank_out / tiles.block_r2),)
    with torch.cuda.device(p.device) if p.is_cuda else contextlib.nullcontext():
        ffn_kernel[grid](
            p,
            u1,
            p if b1 is None else b1.contiguous(),
            v2,
            out,
            rows,
            width,
            rank_in,
            rank_out,
            p.stride(0),
            u1.stride(0),
            v2.stride(0),
            out.stride(0),
            **ffn_constants(b1 is not None, activation, tiles),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


def ffn_constants(has_bias: bool, activation: str, tiles: FfnTiles) -> dict[str, int | bool | str]:
    """What `ffn_kernel` is compiled for."""
    return {
        "HAS_BIAS": has_bias,
        "ACTIVATION": activation,
        "ONE_PASS": tiles.one_pass,
        "BLOCK_M": tiles.block_m,
        "BLOCK_D": tiles.block_d,
        "BLOCK_R1": tiles.block_r1,
        "BLOCK_R2": tiles.block_r2,
    }
