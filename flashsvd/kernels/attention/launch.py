"""Starts the Triton attention kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import math

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.attention.triton_kernel import attention_kernel
from flashsvd.kernels.backend import on_device
from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.kernels.tiles import AttentionTiles, attention_tiles


def launch_attention(
    q: Projection,
    k: Projection,
    v: Projection,
    heads: int,
    kv_heads: int,
    head_dim: int,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim], by `attention_kernel`; arguments are already checked.

    Source: FlashSVD, arXiv 2508.01506.
    """
    p = q.p
    check_compiled(p)
    batch, seq = p.shape[:2]
    tiles = attention_tiles(seq, head_dim, (q.layout, k.layout, v.layout), p.dtype)
    out = torch.empty(batch, seq, heads * head_dim, dtype=p.dtype, device=p.device)
    constants = attention_constants(
        (q.layout, k.layout, v.layout),
        (q.bias is not None, k.bias is not None, v.bias is not None),
        heads // kv_heads,
        head_dim,
        key_mask is not None,
        tiles,
    )
    # As bytes: how a one-bit type is laid out in memory is nobody's promise.
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    grid = (math.ceil(seq / tiles.block_m) * heads * batch,)
    with on_device(p):
        attention_kernel[grid](
            *_tensors(q),
            *_tensors(k),
            *_tensors(v),
            out if mask is None else mask,
            seq,
            out,
            out.stride(0),
            out.stride(1),
            seq,
            heads,
            scale * math.log2(math.e),
            **constants,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


def attention_constants(
    layouts: tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None],
    biases: tuple[bool, bool, bool],
    group: int,
    head_dim: int,
    masked: bool,
    tiles: AttentionTiles,
) -> dict[str, int | bool]:
    """What `attention_kernel` is compiled for: the layouts and biases of q, k and v, and the tiles."""
    constants: dict[str, int | bool] = {
        "GROUP": group,
        "HAS_MASK": masked,
        "HEAD_DIM": head_dim,
        "BLOCK_H": tiles.block_h,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    for i, letter in enumerate("QKV"):
        layout = layouts[i]
        constants[f"{letter}_FACTORED"] = layout is not None
        constants[f"{letter}_HAS_BIAS"] = biases[i]
        constants[f"{letter}_ALIGN"] = 1 if layout is None else layout.alignment
        constants[f"{letter}_ONE_PASS"] = tiles.one_pass[i]
        constants[f"{letter}_BLOCK_R"] = tiles.block_r[i]
    return constants


def _tensors(proj: Projection) -> list[object]:
    """Pointers and strides of one projection; p stands in for what it does not have and the kernel never
    reads."""
    p, bias = proj.p, proj.bias
    if proj.u is None or proj.layout is None:
        return [p, p, p if bias is None else bias.contiguous(), p, p.stride(0), p.stride(1), 0]
    u = proj.u if proj.u.stride(1) == 1 else proj.u.contiguous()
    table = proj.layout.table().to(p.device) if proj.table is None else proj.table.contiguous()
    return [p, u, p if bias is None else bias.contiguous(), table, p.stride(0), p.stride(1), u.stride(0)]
