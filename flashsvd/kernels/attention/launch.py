"""Starts the Triton attention kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.attention.triton_kernel import attention_kernel
from flashsvd.kernels.backend import on_device
from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.kernels.starter import Kept
from flashsvd.kernels.tile_candidates import attention_candidates
from flashsvd.kernels.tiles import AttentionTiles, attention_tiles, device_shared_bytes
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output

Layouts = tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None]


class _Kind(NamedTuple):
    """All that tiles and constants may depend on."""

    batch: int
    seq: int
    heads: int
    group: int
    head_dim: int
    layouts: Layouts
    biases: tuple[bool, bool]
    masked: bool
    align: int
    wide_loads: bool
    dtype: torch.dtype
    device: torch.device

    def default(self) -> AttentionTiles:
        return attention_tiles(self.seq, self.head_dim, self.layouts, self.dtype, wide_loads=self.wide_loads)

    def constants(self, tiles: AttentionTiles) -> dict[str, int | bool]:
        return attention_constants(
            self.seq, self.layouts, self.biases, self.group, self.head_dim, self.masked, self.align, tiles
        )

    def candidates(self) -> tuple[AttentionTiles, ...]:
        loose = not self.wide_loads or any(one is not None and one.alignment % 8 for one in self.layouts)
        limit = device_shared_bytes(self.device)
        return attention_candidates(self.default(), self.seq, self.dtype, limit, loose=loose)

    def key(self) -> str:
        sizes = {name: getattr(self, name) for name in ("batch", "seq", "heads", "group", "head_dim")}
        flags = {name: getattr(self, name) for name in ("biases", "masked", "align", "wide_loads")}
        return key_of(self.dtype, **sizes, **dict(zip("qkv", self.layouts, strict=True)), **flags)


_chosen: Kept[tuple[AttentionTiles, dict[str, int | bool]]] = Kept()
"""Tiles and constants, kept: they cost the CPU of every launch."""


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
    out = torch.empty(batch, seq, heads * head_dim, dtype=p.dtype, device=p.device)
    # p stands in for what a projection does not have and the kernel never reads.
    q_u, k_u, v_u = (_factor(proj) for proj in (q, k, v))
    q_bias, v_bias = (p if proj.bias is None else proj.bias.contiguous() for proj in (q, v))
    q_table, k_table, v_table = (_table(proj) for proj in (q, k, v))
    # Batch, row and factor strides of q, k and v in the kernel's order, then those of out.
    strides = [
        stride
        for proj, u in ((q, q_u), (k, k_u), (v, v_u))
        for stride in (proj.p.stride(0), proj.p.stride(1), 0 if proj.u is None else u.stride(0))
    ]
    strides += out.stride()[:2]
    align = math.gcd(16, *strides)
    units = [stride // align for stride in strides]
    wide_loads = align * p.element_size() % 16 == 0 and not any(
        tensor.data_ptr() % 16 for tensor in (q.p, k.p, v.p, q_u, k_u, v_u)
    )
    # As bytes: how a one-bit type is laid out in memory is nobody's promise.
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    kind = _Kind(
        batch,
        seq,
        heads,
        heads // kv_heads,
        head_dim,
        (q.layout, k.layout, v.layout),
        (q.bias is not None, v.bias is not None),
        mask is not None,
        align,
        wide_loads,
        p.dtype,
        p.device,
    )

    def run(out: torch.Tensor, tiles: AttentionTiles, constants: dict[str, int | bool]) -> None:
        grid = (math.ceil(seq / tiles.block_m) * heads * batch,)
        attention_kernel[grid](
            q.p,
            q_u,
            q_bias,
            q_table,
            *units[0:3],
            k.p,
            k_u,
            k_table,
            *units[3:6],
            v.p,
            v_u,
            v_bias,
            v_table,
            *units[6:9],
            out if mask is None else mask,
            out,
            *units[9:11],
            seq,
            heads,
            scale * math.log2(math.e),
            **constants,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )

    found = _chosen.find(kind)
    if found is None:

        def trial() -> Trial[AttentionTiles]:
            other = like_output(out)

            def start(tiles: AttentionTiles) -> Callable[[], object]:
                return functools.partial(run, other, tiles, kind.constants(tiles))

            return Trial("attention", kind.key(), kind.candidates(), other, start)

        tiles = choose(kind.default(), trial, p)
        found = _chosen.keep(kind, (tiles, kind.constants(tiles)))
    with on_device(p):
        run(out, *found)
    return out


def attention_constants(
    seq: int,
    layouts: Layouts,
    biases: tuple[bool, bool],
    group: int,
    head_dim: int,
    masked: bool,
    stride_align: int,
    tiles: AttentionTiles,
) -> dict[str, int | bool]:
    """What `attention_kernel` is compiled for: the layouts of q, k and v, the biases of q and v, and the tiles;
    `stride_align` divides every stride."""
    constants: dict[str, int | bool] = {
        "GROUP": group,
        "HAS_MASK": masked,
        "EVEN_M": seq % tiles.block_m == 0,
        "EVEN_N": seq % tiles.block_n == 0,
        "STRIDE_ALIGN": stride_align,
        "Q_HAS_BIAS": biases[0],
        "V_HAS_BIAS": biases[1],
        "HEAD_DIM": head_dim,
        "BLOCK_H": tiles.block_h,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    for letter, layout, one_pass, block_r in zip("QKV", layouts, tiles.one_pass, tiles.block_r, strict=True):
        constants[f"{letter}_FACTORED"] = layout is not None
        constants[f"{letter}_ALIGN"] = 1 if layout is None else layout.alignment
        constants[f"{letter}_ONE_PASS"] = one_pass
        constants[f"{letter}_FULL"] = layout is not None and all(rank % block_r == 0 for rank in layout.ranks)
        constants[f"{letter}_BLOCK_R"] = block_r
    return constants


def _factor(proj: Projection) -> torch.Tensor:
    if proj.u is None:
        return proj.p
    return proj.u if proj.u.stride(1) == 1 else proj.u.contiguous()


def _table(proj: Projection) -> torch.Tensor:
    if proj.layout is None:
        return proj.p
    return _kept_table(proj.layout, proj.p.device) if proj.table is None else proj.table.contiguous()


@functools.lru_cache(maxsize=1024)
def _kept_table(layout: HeadLayout, device: torch.device) -> torch.Tensor:
    """A copy to the GPU per call would wait for it, and may not be captured in a CUDA graph."""
    return layout.table().to(device)
