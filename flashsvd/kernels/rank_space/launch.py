"""Starts the Triton rank-space kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rank_space.hopper import hopper_takes, prepare_hopper
from flashsvd.kernels.rank_space.triton_kernel import rank_space_kernel
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tile_candidates import rank_space_candidates
from flashsvd.kernels.tiles import RankSpaceTiles, device_shared_bytes, rank_space_tiles
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output

_ALIGN = 8
"""Elements of a half type in 16 bytes."""

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], object]


def prepare_rank_space(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool,
) -> Start:
    """What writes softmax(q kᵀ·scale) v to `out`, given q, k, v, out and key_mask that look like these, which are
    already checked. It keeps none of them.

    Raises InputError for float64 and for value ranks of which no tile fits on chip.
    """
    check_compiled(q)
    if _is_loose(q, k, v, score, value):
        return functools.partial(_launch_aligned, score, value, kv_group, scale, window, causal)
    if hopper_takes(q, k, v, score, value, kv_group, window, causal):
        return prepare_hopper(q, k, v, out, score, value, scale, key_mask)
    return _prepare_triton(q, k, v, out, score, value, kv_group, scale, key_mask, window, causal)


def _prepare_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool,
) -> Start:
    """By `rank_space_kernel`."""
    default = _tiles(q.shape[1], k.shape[1], score, value, q.dtype)

    def trial() -> Trial[RankSpaceTiles]:
        batch, seq = q.shape[:2]
        keys = k.shape[1]
        other = like_output(out)
        key = key_of(
            q.dtype,
            batch=batch,
            seq=seq,
            keys=keys,
            score=score,
            value=value,
            group=kv_group,
            mask=key_mask is not None,
            window=window,
            causal=causal,
            align=math.gcd(16, *(t.stride(axis) for t in (q, k, v, out) for axis in (0, 1))),
        )

        def start(tiles: RankSpaceTiles) -> Callable[[], object]:
            run = by_tiles(q, k, v, other, score, value, kv_group, scale, key_mask, window, causal, tiles)
            return lambda: run(q, k, v, other, key_mask)

        limit = device_shared_bytes(q.device)
        return Trial(
            "rank space", key, rank_space_candidates(default, seq, q.dtype, limit, keys=keys), other, start
        )

    tiles = choose(default, trial, q)
    return by_tiles(q, k, v, out, score, value, kv_group, scale, key_mask, window, causal, tiles)


def by_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool,
    tiles: RankSpaceTiles,
) -> Start:
    """By `rank_space_kernel` and tiles that were chosen."""
    batch, seq = q.shape[:2]
    keys = k.shape[1]
    heads = score.heads * kv_group
    strides = {
        f"{name}_stride_{letter}": tensor.stride(axis)
        for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out))
        for axis, letter in enumerate("bs")
    }
    align = math.gcd(16, *strides.values())
    constants = _constants(
        seq, keys, score, value, kv_group, key_mask is not None, window is not None, causal, align, tiles
    )
    launch = Launch(
        rank_space_kernel,
        (math.ceil(seq / tiles.block_m) * heads * batch,),
        ("q", "k", "v", "out", "key_mask", "span_table"),
        {
            **{name: stride // align for name, stride in strides.items()},
            "seq": seq,
            "keys": keys,
            "heads": heads,
            "scale_log2": scale * math.log2(math.e),
            "window": window or 0,
            **constants,
        },
        q.device,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    spans = _span_table(score, value, q.device)

    def start(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, key_mask: torch.Tensor | None
    ) -> None:
        # As bytes: how a one-bit type is laid out in memory is nobody's promise.
        mask = out if key_mask is None else key_mask.contiguous().view(torch.uint8)
        launch(q, k, v, out, mask, spans)

    return start


def _is_loose(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: HeadLayout, value: HeadLayout
) -> bool:
    """Whether some head's columns do not start on 16 bytes. In half types on sm_90, Triton 3.6 makes wrong numbers and
    illegal addresses of operands that are loaded in smaller pieces, and is 3 times slower where it does not."""
    if not q.is_cuda or q.element_size() != 2:
        return False
    starts = (score.alignment, value.alignment, *(t.stride(i) for t in (q, k, v) for i in (0, 1)))
    return any(start % _ALIGN for start in starts) or any(t.data_ptr() % 16 for t in (q, k, v))


@torch.no_grad()
def _launch_aligned(
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    window: int | None,
    causal: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    key_mask: torch.Tensor | None,
) -> None:
    """The same by way of copies whose ranks are padded with zeros, which change nothing."""
    wide_score, wide_value = _padded(score), _padded(value)
    wide_q, wide_k, wide_v = (
        _spread(tensor, layout, wide)
        for tensor, layout, wide in (
            (q, score.repeated(kv_group), wide_score.repeated(kv_group)),
            (k, score, wide_score),
            (v, value, wide_value),
        )
    )
    heads = wide_value.repeated(kv_group)
    wide_out = torch.empty(*q.shape[:2], heads.p_width, dtype=q.dtype, device=q.device)
    start = _prepare_triton(
        wide_q, wide_k, wide_v, wide_out, wide_score, wide_value, kv_group, scale, key_mask, window, causal
    )
    start(wide_q, wide_k, wide_v, wide_out, key_mask)
    for (to, _, rank), (at, _, _) in zip(value.repeated(kv_group).spans, heads.spans, strict=True):
        out[..., to : to + rank] = wide_out[..., at : at + rank]


def _padded(layout: HeadLayout) -> HeadLayout:
    return HeadLayout(tuple(-(-rank // _ALIGN) * _ALIGN for rank in layout.ranks))


def _spread(tensor: torch.Tensor, layout: HeadLayout, wide: HeadLayout) -> torch.Tensor:
    """Every head's columns at their places in a wider layout, zeros between."""
    spread = tensor.new_zeros(*tensor.shape[:2], wide.p_width)
    for (at, _, rank), (to, _, _) in zip(layout.spans, wide.spans, strict=True):
        spread[..., to : to + rank] = tensor[..., at : at + rank]
    return spread


def rank_space_constants(
    seq: int,
    keys: int,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    masked: bool,
    windowed: bool,
    causal: bool,
    stride_align: int,
    tiles: RankSpaceTiles,
) -> dict[str, int | bool]:
    """What `rank_space_kernel` is compiled for; `stride_align` divides every stride."""
    return {
        "GROUP": kv_group,
        "HAS_MASK": masked,
        "HAS_WINDOW": windowed,
        "CAUSAL": causal,
        "EVEN_M": seq % tiles.block_m == 0,
        "EVEN_N": keys % tiles.block_n == 0,
        "FULL_SCORE": all(rank % tiles.block_score == 0 for rank in score.ranks),
        "FULL_VALUE": all(rank == tiles.block_value for rank in value.ranks),
        "SCORE_ALIGN": score.alignment,
        "VALUE_ALIGN": value.alignment,
        "STRIDE_ALIGN": stride_align,
        "ONE_PASS": tiles.one_pass,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_SCORE": tiles.block_score,
        "BLOCK_VALUE": tiles.block_value,
    }


@functools.lru_cache(maxsize=1024)
def _tiles(seq: int, keys: int, score: HeadLayout, value: HeadLayout, dtype: torch.dtype) -> RankSpaceTiles:
    """Kept, as the constants: making them took as long on the CPU as the launch, and a call whose ranks are padded
    prepares anew each time."""
    return rank_space_tiles(seq, score, value, dtype, keys=keys)


_constants = functools.lru_cache(maxsize=1024)(rank_space_constants)


@functools.lru_cache(maxsize=1024)
def _span_table(score: HeadLayout, value: HeadLayout, device: torch.device) -> torch.Tensor:
    """int32 [kv heads, 4], kept: a copy to the GPU per call would wait for it, and may not be captured in a
    CUDA graph."""
    rows = [
        (score_start, score_rank, value_start, value_rank)
        for (score_start, _, score_rank), (value_start, _, value_rank) in zip(
            score.spans, value.spans, strict=True
        )
    ]
    return torch.tensor(rows, dtype=torch.int32).to(device)
