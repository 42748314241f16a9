"""Which way a feed-forward op goes on a device, and what that is expected to cost: a pure function of its sizes.

The rates were measured on one H200 (bf16, M 16384), in us:

    D     R    Hopper kernel   Triton kernel   cuBLAS in chunks of 2048, 4096, 8192 and all rows, activation in it
    3072  128       65             116
    3072  240       94             121
    3072  312      198             438             202  158  142  129
    4096  416        -             902             277  238  215  205

Chunks with a pass for the activation: 261, 208, 196 and 182 at R 312, 360, 299, 281 and 272 at R 416. Everything else
is scaled from these by data sheets, good enough to choose by and marked as such.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.ffn.activation import in_epilogue
from flashsvd.kernels.ffn.hopper import HopperTiles, hopper_tiles
from flashsvd.kernels.ffn.tiles import FfnTiles, ffn_tiles
from flashsvd.kernels.tiles import ffn_stream_tiles, shared_limit_bytes


@dataclass(frozen=True)
class FfnPlan:
    """How one call runs. `why` is a sentence for people."""

    path: Literal["hopper", "kernel", "chunked"]
    """"hopper" and "kernel" keep the wide activation on chip, the first by instructions that only compute capability
    9 has; "chunked" has it in memory, some rows at a time."""
    tiles: HopperTiles | FfnTiles | None
    """Of the kernel; None where chunked."""
    chunk_rows: int
    """Rows at a time where chunked, else 0."""
    recompute_factor: int
    """How many times each element of the wide activation is made."""
    workspace_bytes: int
    """Alive during the call, beside inputs and output."""
    predicted_us: float | None
    """None where nothing was measured, as on a CPU."""
    why: str


@dataclass(frozen=True)
class _Rates:
    """What a device reaches. Kernel rates are of one multiprocessor, as a program has it to itself."""

    multiprocessors: int
    kernel_flops_per_us: float
    activation_elements_per_us: float
    gemm_flops_per_us: float
    bytes_per_us: float
    loop_factor: float
    """How many times slower the kernel is where it loops over R1; fp32's rate is of that form already."""


# fp32 and everything but sm_90's half types are estimates from data sheets.
_HALF = {
    "sm_90": _Rates(132, 3.80e6, 26.2e3, 700e6, 4.3e6, 2.0),
    "sm_80": _Rates(108, 1.47e6, 20.0e3, 250e6, 1.7e6, 2.0),
    "other": _Rates(128, 0.65e6, 20.0e3, 130e6, 0.8e6, 2.0),
}
_FULL = {
    "sm_90": _Rates(132, 0.19e6, 26.2e3, 45e6, 4.3e6, 1.0),
    "sm_80": _Rates(108, 0.07e6, 20.0e3, 17e6, 1.7e6, 1.0),
    "other": _Rates(128, 0.15e6, 20.0e3, 50e6, 0.8e6, 1.0),
}

_CHUNK_US = 12.3
"""What a chunk costs beyond its FLOPs and bytes: launches, and GEMMs that begin and end in turn (H200, R 240)."""

_MISALIGNED_FACTOR = 6.0
"""cuBLAS with a rank that is no multiple of 8, in half types (R 307 on an H200: 1027 us for about 170)."""

_TOLERANCE = 1.1
"""The model is no better than this, and the kernel needs no workspace."""


@functools.lru_cache(maxsize=4096)
def ffn_plan(
    rows: int,
    width: int,
    rank_in: int,
    rank_out: int,
    dtype: torch.dtype,
    device_kind: str,
    gated: bool = False,
    *,
    rank_up: int = 0,
    out_width: int = 0,
    multiprocessors: int | None = None,
    aligned: bool = True,
    wide_loads: bool = True,
    activation: str = "gelu",
) -> FfnPlan:
    """The way of a feed-forward op over M `rows`, D `width`, and ranks R1 and R2 `rank_in`, `rank_out`.

    device_kind: "cpu", or "sm_90" for a GPU of compute capability 9.0. gated: whether there is a second branch,
    of rank `rank_up` (R1 unless given). out_width: of an output factor (v2), 0 without. multiprocessors: of that
    very GPU; the kind's usual number unless given. aligned: whether all rows start on 16 bytes, as the Hopper kernel
    wants; wide_loads: whether they also end there, as Triton's wants in half types. activation: some are free in
    chunks (`flashsvd.kernels.ffn.activation.in_epilogue`).

    Chunks are the smallest power of two of rows whose fixed cost is at most a quarter of their time, or a quarter of
    the rows. Raises InputError for sizes below 1 or an unknown kind of device.

    >>> ffn_plan(16384, 3072, 240, 240, torch.bfloat16, "sm_90").path
    'hopper'
    >>> ffn_plan(16384, 3072, 240, 240, torch.bfloat16, "sm_90", aligned=False).path
    'kernel'
    >>> ffn_plan(16384, 11008, 1496, 1496, torch.bfloat16, "sm_90", gated=True).path
    'chunked'
    """
    if min(rows, width, rank_in, rank_out) < 1 or min(rank_up, out_width) < 0:
        raise InputError(
            f"sizes must be at least 1, got rows {rows}, width {width}, ranks {rank_in} and {rank_out}"
        )
    rank_up = (rank_up or rank_in) if gated else 0
    if device_kind == "cpu":
        stream = ffn_stream_tiles(rows, width, dtype, gated=gated, rank_out=rank_out if out_width else 0)
        why = f"tiles of {stream.block_m} rows in plain torch, small enough for a CPU's cache; no time predicted"
        return FfnPlan("chunked", None, stream.block_m, 1, stream.workspace_bytes, None, why)
    if not device_kind.startswith("sm_") or not device_kind[3:].isdigit():
        raise InputError(f'device_kind must be "cpu" or like "sm_90", got {device_kind!r}')
    rates = (_HALF if dtype.itemsize == 2 else _FULL).get(device_kind)
    known = rates is not None and (device_kind, dtype.itemsize) == ("sm_90", 2)
    rates = rates or (_HALF if dtype.itemsize == 2 else _FULL)["other"]
    count = multiprocessors or rates.multiprocessors

    tiles = ffn_tiles(
        rows,
        width,
        rank_in,
        rank_out,
        dtype,
        rank_up=rank_up,
        out_width=out_width,
        shared_limit_bytes=shared_limit_bytes(int(device_kind[3:])),
        multiprocessors=count,
    )
    blocks = tiles.out_blocks(rank_out)
    wide_loads = wide_loads and not any(
        size % 8 for size in (width, rank_in, rank_up, rank_out if out_width else 0)
    )
    possible = kernel_takes(tiles, rank_out, out_width, dtype, wide_loads)
    programs = -(-rows // tiles.block_m) * blocks
    kernel_us = -(-programs // count) * _program_us(tiles, width, gated, out_width, rates, dtype)
    fused = in_epilogue(activation, dtype) and not gated
    row_us = _row_us(width, rank_in, rank_up, rank_out, out_width, dtype, rates, fused)
    chunk_rows = _chunk_rows(rows, row_us)
    chunked_us = -(-rows // chunk_rows) * _CHUNK_US + rows * row_us
    workspace = chunk_rows * (width * (2 if gated else 1) + (rank_out if out_width else 0)) * dtype.itemsize

    chunks = f"chunks of {chunk_rows} rows through cuBLAS"
    hopper = hopper_tiles(rows, rank_in, rank_out, count)
    if hopper and known and device_kind == "sm_90" and aligned and not gated and not out_width:
        programs_there = -(-rows // hopper.block_m)
        waves = -(-programs_there // count)
        predicted_us = waves * hopper_us(hopper, width)
        # Never Triton's own kernel where this one runs.
        if predicted_us <= chunked_us * _TOLERANCE:
            why = (
                f"one kernel with Hopper's own instructions, the wide activation on chip: about {predicted_us:.0f} us "
                f"and no workspace, against {chunked_us:.0f} us and {workspace / 2**20:.1f} MiB in {chunks}"
            )
            return FfnPlan("hopper", hopper, 0, 1, 0, predicted_us, why)
    told = "" if known else "; estimated from data sheets, not measured"
    if _misaligned(dtype, rank_in, rank_up, rank_out):
        told = f"; ranks padded to multiples of 8 would be faster, through cuBLAS up to 6 times{told}"
    if possible and kernel_us <= chunked_us * _TOLERANCE:
        again = f", made {blocks} times" if blocks > 1 else ""
        why = (
            f"one kernel, the wide activation on chip{again}: about {kernel_us:.0f} us and no workspace, against "
            f"{chunked_us:.0f} us and {workspace / 2**20:.1f} MiB in {chunks}{told}"
        )
        return FfnPlan("kernel", tiles, 0, blocks, 0, kernel_us, why)
    against = (
        f"against {kernel_us:.0f} us of one kernel with {programs} programs on {count} multiprocessors"
        if possible
        else f"as the kernel does not take ranks {rank_in} and {rank_out} in {dtype} like this"
    )
    why = f"{chunks}: about {chunked_us:.0f} us and {workspace / 2**20:.1f} MiB, {against}{told}"
    return FfnPlan("chunked", None, chunk_rows, 1, workspace, chunked_us, why)


def kernel_takes(
    tiles: FfnTiles, rank_out: int, out_width: int, dtype: torch.dtype, wide_loads: bool
) -> bool:
    """Whether the Triton kernel may run these sizes.

    Not an output factor over several blocks of output ranks; and in half types neither one of more than 128 of them,
    nor a loop over input ranks, nor rows that do not start and end on 16 bytes: loaded in smaller pieces, Triton 3.6
    on an H200 made errors of 0.14 and illegal addresses of what was right otherwise.
    """
    if dtype.itemsize > 4 or (out_width and tiles.out_blocks(rank_out) > 1):
        return False
    return dtype.itemsize == 4 or (wide_loads and tiles.one_pass and (not out_width or rank_out <= 128))


def _program_us(
    tiles: FfnTiles, width: int, gated: bool, out_width: int, rates: _Rates, dtype: torch.dtype
) -> float:
    """One program of the kernel on a multiprocessor of its own: products as padded, then the activation."""
    outs = tiles.block_r2 + tiles.tail_r2
    ranks = outs + tiles.block_r1 + tiles.tail_r1 + (tiles.block_up + tiles.tail_up if gated else 0)
    flops = 2 * tiles.block_m * (width * ranks + out_width * outs)
    # 8 warps on 64 rows or fewer keep the tensor cores 1.2 times less busy.
    short = 1.2 if tiles.block_m < 128 and tiles.num_warps == 8 else 1.0
    loop = 1.0 if tiles.one_pass else rates.loop_factor
    # Sums in two parts: 438 us at ranks of 312 and 902 at 416, where 64 rows of 512 sums leave no registers.
    # With a gate 203 us at M 16384, D 1152 and ranks of 232, where chunks of all rows took 101.
    in_parts = tiles.tail_r1 or tiles.tail_r2 or tiles.tail_up or gated
    parts = 2.6 if dtype.itemsize == 2 and in_parts else 1.0
    return (
        flops * short * loop * parts / rates.kernel_flops_per_us
        + tiles.block_m * width / rates.activation_elements_per_us
    )


def hopper_us(tiles: HopperTiles, width: int) -> float:
    """One program of the Hopper kernel, in half types: 128 rows 5.3e6 FLOP/us, in blocks of 32 columns 2.7e6, 64 rows
    4.6e6."""
    rate = 2.7e6 if tiles.block_d < 64 else 4.6e6 if tiles.block_m < 128 else 5.3e6
    flops = 2 * tiles.block_m * width * (sum(tiles.rank_in) + sum(tiles.rank_out))
    return flops / rate + tiles.block_m * width / _HALF["sm_90"].activation_elements_per_us


def _row_us(
    width: int,
    rank_in: int,
    rank_up: int,
    rank_out: int,
    out_width: int,
    dtype: torch.dtype,
    rates: _Rates,
    fused: bool,
) -> float:
    """One row through cuBLAS, its chunk's fixed cost apart."""
    flops = 2 * (width * (rank_in + rank_up + rank_out) + out_width * rank_out)
    # Written, activated in place, read; with a gate two are written, one pass reads both and writes one, which is read.
    # Where the activation is in the product's epilogue, writing and reading hide behind the products.
    passes = 6 if rank_up else 1 if fused else 4
    slow = _MISALIGNED_FACTOR if _misaligned(dtype, rank_in, rank_up, rank_out) else 1.0
    return flops * slow / rates.gemm_flops_per_us + passes * width * dtype.itemsize / rates.bytes_per_us


def _chunk_rows(rows: int, row_us: float) -> int:
    # Fixed cost a quarter of the time at most, in a quarter of the rows at most: 4096 of 16384 at D 3072, R 312.
    chunk = 1024
    while chunk * row_us < 3 * _CHUNK_US and chunk < rows:
        chunk *= 2
    return min(chunk, max(rows // 4, 4096), rows)


def _misaligned(dtype: torch.dtype, *ranks: int) -> bool:
    return dtype.itemsize == 2 and any(rank % 8 for rank in ranks)
