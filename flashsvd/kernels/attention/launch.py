"""Starts the Triton attention kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.attention.naive import Rotation, rebuild_heads
from flashsvd.kernels.attention.stream import stream_attention
from flashsvd.kernels.attention.tiles import (
    Layouts,
    doubtful,
    kernel_tiles,
    member_rows,
    starts_whole,
    turns,
    whole_pieces,
)
from flashsvd.kernels.attention.triton_kernel import attention_kernel
from flashsvd.kernels.backend import on_device
from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.kernels.starter import Kept
from flashsvd.kernels.tile_candidates import attention_candidates
from flashsvd.kernels.tiles import AttentionTiles, device_shared_bytes
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output


class _Kind(NamedTuple):
    """All that tiles and constants may depend on."""

    batch: int
    seq: int
    keys: int
    heads: int
    group: int
    head_dim: int
    layouts: Layouts
    biases: tuple[bool, bool, bool]
    masked: bool
    causal: bool
    window: int | None
    rotary: bool
    align: int
    wide_loads: bool
    dtype: torch.dtype
    device: torch.device

    def default(self) -> AttentionTiles:
        return kernel_tiles(
            self.seq,
            self.head_dim,
            self.layouts,
            self.dtype,
            wide_loads=self.wide_loads,
            keys=self.keys,
            group=self.group,
            rotary=self.rotary,
        )

    def constants(self, tiles: AttentionTiles) -> dict[str, int | bool]:
        return attention_constants(
            self.seq,
            self.layouts,
            self.biases,
            self.group,
            self.head_dim,
            self.masked,
            self.align,
            tiles,
            self.dtype,
            keys=self.keys,
            causal=self.causal,
            windowed=self.window is not None,
            rotary=self.rotary,
        )

    def candidates(self) -> tuple[AttentionTiles, ...]:
        loose = not self.wide_loads or any(one is not None and one.alignment % 8 for one in self.layouts)
        limit = device_shared_bytes(self.device)
        default = self.default()
        found = attention_candidates(
            default, self.seq * default.members, self.dtype, limit, loose=loose, keys=self.keys
        )
        if not self.rotary or self.dtype.itemsize >= 4:
            return found
        return tuple(tiles for tiles in found if whole_pieces(tiles))

    def key(self) -> str:
        sizes = {name: getattr(self, name) for name in ("batch", "seq", "keys", "heads", "group", "head_dim")}
        flags = {name: getattr(self, name) for name in ("biases", "masked", "causal", "window", "rotary")}
        loads = {"align": self.align, "wide_loads": self.wide_loads}
        return key_of(self.dtype, **sizes, **dict(zip("qkv", self.layouts, strict=True)), **flags, **loads)


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
    causal: bool = False,
    window: int | None = None,
    rotation: Rotation | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim], by `attention_kernel`; arguments are already checked.

    Source: FlashSVD, arXiv 2508.01506.
    """
    p = q.p
    check_compiled(p)
    batch, seq = p.shape[:2]
    keys = k.p.shape[1]
    out = torch.empty(batch, seq, heads * head_dim, dtype=p.dtype, device=p.device)
    # p stands in for what a projection does not have and the kernel never reads.
    q_u, k_u, v_u = (_factor(proj) for proj in (q, k, v))
    q_bias, k_bias, v_bias = (p if proj.bias is None else proj.bias.contiguous() for proj in (q, k, v))
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
    layouts = (q.layout, k.layout, v.layout)
    half_on_gpu = p.is_cuda and p.element_size() == 2
    arguments = (heads, kv_heads, head_dim, key_mask, scale, causal, window)
    if rotation is not None and p.is_cuda and doubtful(head_dim, heads // kv_heads, p.dtype):
        return stream_attention(q, k, v, *arguments, rotation)
    if rotation is not None and half_on_gpu and not turns(head_dim, layouts, wide_loads):
        q, k = (
            turned_in_memory(proj, count, head_dim, rotation) for proj, count in ((q, heads), (k, kv_heads))
        )
        return launch_attention(q, k, v, *arguments)
    split = causal or window is not None
    if split and half_on_gpu and not starts_whole(head_dim, layouts, wide_loads):
        return stream_attention(q, k, v, *arguments, rotation)
    # As bytes: how a one-bit type is laid out in memory is nobody's promise.
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    angles = [out, 0, 0, out, 0, 0] if rotation is None else _angles(rotation)
    kind = _Kind(
        batch,
        seq,
        keys,
        heads,
        heads // kv_heads,
        head_dim,
        layouts,
        (q.bias is not None, k.bias is not None, v.bias is not None),
        mask is not None,
        causal,
        window,
        rotation is not None,
        align,
        wide_loads,
        p.dtype,
        p.device,
    )

    def run(out: torch.Tensor, tiles: AttentionTiles, constants: dict[str, int | bool]) -> None:
        grid = (math.ceil(seq / tiles.tokens) * (heads // tiles.members) * batch,)
        attention_kernel[grid](
            q.p,
            q_u,
            q_bias,
            q_table,
            *units[0:3],
            k.p,
            k_u,
            k_bias,
            k_table,
            *units[3:6],
            v.p,
            v_u,
            v_bias,
            v_table,
            *units[6:9],
            out if mask is None else mask,
            *angles,
            out,
            *units[9:11],
            seq,
            keys,
            heads,
            window or 0,
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
    biases: tuple[bool, bool, bool],
    group: int,
    head_dim: int,
    masked: bool,
    stride_align: int,
    tiles: AttentionTiles,
    dtype: torch.dtype,
    *,
    keys: int,
    causal: bool,
    windowed: bool,
    rotary: bool,
) -> dict[str, int | bool]:
    """What `attention_kernel` is compiled for: the layouts and biases of q, k and v, which keys count, and the tiles;
    `stride_align` divides every stride but those of cosines and sines."""
    constants: dict[str, int | bool] = {
        "GROUP": group,
        "MEMBERS": tiles.members,
        "CAUSAL": causal,
        "HAS_WINDOW": windowed,
        "TURNED": rotary,
        "HAS_MASK": masked,
        "EVEN_M": tiles.block_m % tiles.members == 0 and seq % tiles.tokens == 0,
        "EVEN_N": keys % tiles.block_n == 0,
        "STRIDE_ALIGN": stride_align,
        "HEAD_DIM": head_dim,
        "BLOCK_H": tiles.block_h,
        "BLOCK_C": tiles.block_c,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_Q": member_rows(tiles, dtype),
    }
    for letter, biased in zip("QKV", biases, strict=True):
        # Without a turn, a bias of k changes no weight.
        constants[f"{letter}_HAS_BIAS"] = biased and (letter != "K" or rotary)
    for letter, layout, one_pass, block_r in zip("QKV", layouts, tiles.one_pass, tiles.block_r, strict=True):
        constants[f"{letter}_FACTORED"] = layout is not None
        constants[f"{letter}_ALIGN"] = 1 if layout is None else layout.alignment
        constants[f"{letter}_ONE_PASS"] = one_pass
        constants[f"{letter}_FULL"] = layout is not None and all(rank % block_r == 0 for rank in layout.ranks)
        constants[f"{letter}_BLOCK_R"] = block_r
    return constants


def turned_in_memory(proj: Projection, count: int, head_dim: int, rotation: Rotation) -> Projection:
    """Dense heads, rebuilt and turned in memory, in fp32."""
    rebuilt = rebuild_heads(proj, count, head_dim).transpose(1, 2).flatten(2)
    cos, sin = (part[:, -rebuilt.shape[1] :].float() for part in rotation)
    return Projection(naive_rotary(rebuilt.float(), cos, sin).to(rebuilt.dtype), None, None, None, None)


def _angles(rotation: Rotation) -> list[torch.Tensor | int]:
    """Cosines and sines, each with its batch and row strides."""
    return [
        part for turn in rotation for part in (turn, turn.stride(0) if len(turn) > 1 else 0, turn.stride(1))
    ]


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
