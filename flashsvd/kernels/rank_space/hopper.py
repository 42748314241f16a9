"""Starts the Hopper rank-space kernel, and says what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashsvd.kernels.backend import gpu_of
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tile_candidates import shortlist
from flashsvd.kernels.tiles import HOPPER_SHARED_BYTES
from flashsvd.kernels.tma import describable, descriptors, has_gluon
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], object]

_PROGRAMS = 2
"""Programs that share a multiprocessor, as registers allow: one's softmax runs while the other multiplies."""


@dataclass(frozen=True)
class HopperTiles:
    """Tiles of the Hopper kernel: query rows, keys, columns of q and k and of v, and the columns of q and k that are
    multiplied, in two parts."""

    block_m: int
    block_n: int
    score: int
    value: int
    parts: tuple[int, int]
    stages: int = 3
    num_warps: int = 4

    @property
    def shared_bytes(self) -> int:
        """An estimate from above, of a half type: tiles of q, k and v, the result turned around, barriers."""
        read = self.block_m * self.score + self.stages * self.block_n * (self.score + self.value)
        return 2 * read + 2 * self.block_m * self.value + 1024

    def constants(self, score_rank: int, value_rank: int, masked: bool, seq: int) -> dict[str, int | bool]:
        """What `rank_space_hopper_kernel` is compiled for, but STRIDE_ALIGN."""
        return {
            "SCORE": score_rank,
            "VALUE": value_rank,
            "HAS_MASK": masked,
            "EVEN_N": seq % self.block_n == 0,
            "MAIN": self.parts[0],
            "TAIL": self.parts[1],
            "BM": self.block_m,
            "BN": self.block_n,
            "HS": self.score,
            "HV": self.value,
            "STAGES": self.stages,
        }


def hopper_tiles(seq: int, score_rank: int, value_rank: int) -> HopperTiles | None:
    """Tiles for ranks that are the same in every head, None above 64.

    >>> hopper_tiles(512, 40, 40)
    HopperTiles(block_m=128, block_n=64, score=64, value=64, parts=(32, 16), stages=3, num_warps=4)
    >>> hopper_tiles(512, 72, 40)
    """
    if max(score_rank, value_rank) > 64:
        return None
    parts = (32, 0) if score_rank <= 32 else (32, 16) if score_rank <= 48 else (64, 0)
    score, value = (32 if rank <= 32 else 64 for rank in (score_rank, value_rank))
    block_m, block_n = (128, 64) if seq > 64 else (64, 64)
    if seq >= 8192 and score == value == 32:
        # 1292 us at [1, 16384], rank 32, where 128 by 64 takes 1421: registers for three programs, half the barriers.
        block_m, block_n = 64, 128
    return HopperTiles(block_m, block_n, score, value, parts)


def hopper_candidates(default: HopperTiles, seq: int) -> tuple[HopperTiles, ...]:
    """Tiles worth timing beside the default. `_PROGRAMS` of each fit a multiprocessor."""
    forms = (
        {"stages": 2},
        {"stages": 4},
        {"block_m": 64, "block_n": 64},
        {"block_m": 64, "block_n": 128},
        {"block_m": 128, "block_n": 64},
        {"block_m": 64, "block_n": 128, "stages": 2},
        {"block_m": 128, "block_n": 32},
        {"block_m": 128, "block_n": 128, "stages": 2, "num_warps": 8},
    )

    def fits(tiles: HopperTiles) -> bool:
        # Of a short sequence, a longer tile would only be padding.
        short = max(tiles.block_m, tiles.block_n) <= 64
        return (seq > 64 or short) and _PROGRAMS * tiles.shared_bytes <= HOPPER_SHARED_BYTES

    return shortlist(default, forms, fits)


def hopper_takes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    window: int | None,
    causal: bool,
) -> bool:
    """Whether the kernel takes such a call: half types, one rank in all heads, a query head per kv head, every
    key for every query, tensors that TMA can read, on a GPU of compute capability 9."""
    return (
        q.is_cuda
        and q.element_size() == 2
        and kv_group == 1
        and window is None
        and not causal
        and len({*score.ranks}) == len({*value.ranks}) == 1
        and hopper_tiles(q.shape[1], score.ranks[0], value.ranks[0]) is not None
        and all(describable(tensor) for tensor in (q, k, v))
        and gpu_of(q.device).major == 9
        and has_gluon()
    )


def prepare_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    scale: float,
    key_mask: torch.Tensor | None,
) -> Start:
    """What attends with tensors that look like these, which `hopper_takes`; it keeps none of them."""
    default = hopper_tiles(q.shape[1], score.ranks[0], value.ranks[0])
    assert default is not None

    def trial() -> Trial[HopperTiles]:
        batch, seq = q.shape[:2]
        other = like_output(out)
        align = math.gcd(16, *out.stride()[:2])
        masked = key_mask is not None
        key = key_of(q.dtype, batch=batch, seq=seq, score=score, value=value, mask=masked, align=align)

        def start(tiles: HopperTiles) -> Callable[[], object]:
            run = by_tiles(q, k, v, other, score, value, scale, key_mask, tiles)
            return lambda: run(q, k, v, other, key_mask)

        return Trial("rank space hopper", key, hopper_candidates(default, seq), other, start)

    return by_tiles(q, k, v, out, score, value, scale, key_mask, choose(default, trial, q))


def by_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    scale: float,
    key_mask: torch.Tensor | None,
    tiles: HopperTiles,
) -> Start:
    """The same by tiles that were chosen."""
    from flashsvd.kernels.rank_space.hopper_kernel import rank_space_hopper_kernel

    batch, seq = q.shape[:2]
    heads, score_rank, value_rank = score.heads, score.ranks[0], value.ranks[0]
    count = math.ceil(seq / tiles.block_m) * heads * batch
    stays = _PROGRAMS * gpu_of(q.device).multiprocessors
    align = math.gcd(16, *out.stride()[:2])
    makers = [
        descriptors(tensor, (1, rows, columns))
        for tensor, rows, columns in (
            (q, tiles.block_m, tiles.score),
            (k, tiles.block_n, tiles.score),
            (v, tiles.block_n, tiles.value),
        )
    ]
    launch = Launch(
        rank_space_hopper_kernel,
        # Blocks of 64 rows find room for more than two programs, and long ones hide their ends themselves.
        (count if tiles.block_m == 64 else min(count, stays),),
        ("q_desc", "k_desc", "v_desc", "out", "key_mask"),
        {
            "batch": batch,
            "seq": seq,
            "heads": heads,
            "out_stride_b": out.stride(0) // align,
            "out_stride_s": out.stride(1) // align,
            "scale_log2": scale * math.log2(math.e),
            **tiles.constants(score_rank, value_rank, key_mask is not None, seq),
            "STRIDE_ALIGN": align,
        },
        q.device,
        num_warps=tiles.num_warps,
    )

    def start(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, key_mask: torch.Tensor | None
    ) -> None:
        # As bytes: how a one-bit type is laid out in memory is nobody's promise.
        mask = out if key_mask is None else key_mask.contiguous().view(torch.uint8)
        launch(*[make(tensor) for make, tensor in zip(makers, (q, k, v), strict=True)], out, mask)

    return start
