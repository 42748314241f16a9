"""How a checked call is carried out on the backend named: the kernel, chunks through cuBLAS, or tiles on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.backend import Backend, gpu_of
from flashsvd.kernels.ffn.hopper import HopperTiles, hopper_reads, prepare_hopper
from flashsvd.kernels.ffn.naive import naive_ffn
from flashsvd.kernels.ffn.operands import FfnOperands, as_matrix
from flashsvd.kernels.ffn.plan import FfnPlan, ffn_plan
from flashsvd.kernels.ffn.stream import Gate, gate_in_torch, stream_ffn
from flashsvd.kernels.ffn.tiles import FfnTiles, ffn_tiles
from flashsvd.kernels.ffn.tune import tuned_hopper, tuned_triton
from flashsvd.kernels.tiles import ffn_stream_tiles

Start = Callable[[FfnOperands, torch.Tensor], object]
"""Fills an output [..., R2 or N] from operands whose p and up_p are [..., R]."""


def prepare_ffn(ffn: FfnOperands, out: torch.Tensor, backend: Backend) -> Start:
    """What fills an `out` for operands that look like these, which are checked and given as matrices, and that share
    memory with it where these do. It keeps no tensor.

    On "triton" as `ffn_plan` says; "interpret" takes the kernel wherever it can. Raises InputError for float64 there.
    """
    if ffn.rows == 0:
        return _nothing
    if backend == "naive":
        return _naive
    if backend != "torch":
        check_compiled(ffn.p)
    if backend == "interpret":
        tiles = ffn_tiles(
            ffn.rows,
            ffn.width,
            ffn.rank_in,
            ffn.rank_out,
            ffn.p.dtype,
            rank_up=ffn.rank_up,
            out_width=ffn.out_width,
        )
        if not ffn.out_width or tiles.out_blocks(ffn.rank_out) == 1:
            return _kernel(ffn, tiles, out)
    if not ffn.p.is_cuda:
        stream = ffn_stream_tiles(
            ffn.rows,
            ffn.width,
            ffn.p.dtype,
            gated=ffn.rank_up > 0,
            rank_out=ffn.rank_out if ffn.out_width else 0,
        )
        return _stream(ffn, out, stream.block_m, stream.block_d)
    plan = plan_of(ffn)
    if backend == "triton" and isinstance(plan.tiles, HopperTiles):
        # A program has read its rows before it writes them.
        chosen = tuned_hopper(ffn, plan.tiles, out)
        return _into(ffn, out, True, functools.partial(prepare_hopper, ffn, chosen))
    if backend == "triton" and isinstance(plan.tiles, FfnTiles):
        return _kernel(ffn, plan.tiles, out)
    gate = gate_in_torch
    if backend == "triton" and ffn.rank_up:
        from flashsvd.kernels.ffn.gate_kernel import apply_gate

        gate = apply_gate
    return _stream(ffn, out, plan.chunk_rows or min(ffn.rows, 4096), ffn.width, gate)


def _nothing(*_: object) -> None:
    """The result of no rows."""


@torch.no_grad()
def _naive(ffn: FfnOperands, out: torch.Tensor) -> None:
    as_matrix(out).copy_(naive_ffn(ffn.as_matrices()))


def plan_of(ffn: FfnOperands) -> FfnPlan:
    """`ffn_plan` for these tensors and the GPU that they are on, or the CPU."""
    kind, multiprocessors = "cpu", None
    if ffn.p.is_cuda:
        gpu = gpu_of(ffn.p.device)
        kind, multiprocessors = f"sm_{gpu.major}{gpu.minor}", gpu.multiprocessors
    return ffn_plan(
        ffn.rows,
        ffn.width,
        ffn.rank_in,
        ffn.rank_out,
        ffn.p.dtype,
        kind,
        ffn.rank_up > 0,
        rank_up=ffn.rank_up,
        out_width=ffn.out_width,
        multiprocessors=multiprocessors,
        aligned=kind == "sm_90" and hopper_reads(ffn),
        wide_loads=ffn.wide_loads,
        activation=ffn.activation,
    )


def _kernel(ffn: FfnOperands, tiles: FfnTiles, out: torch.Tensor) -> Start:
    from flashsvd.kernels.ffn.launch import prepare_launch

    # A program has read all of its rows before it writes them, but not those of the next output block's.
    alone = tiles.out_blocks(ffn.rank_out) == 1
    tiles = tuned_triton(ffn, tiles, out)
    return _into(ffn, out, alone, functools.partial(prepare_launch, ffn, tiles))


def _stream(
    ffn: FfnOperands, out: torch.Tensor, block_m: int, block_d: int, gate: Gate = gate_in_torch
) -> Start:
    def start(ffn: FfnOperands, out: torch.Tensor) -> None:
        stream_ffn(ffn.as_matrices(), as_matrix(out), block_m, block_d, gate)

    # As above: with several tiles along D, the second would read what the first has written.
    return _into(ffn, out, block_d >= ffn.width or ffn.out_width > 0, lambda _: start)


def _into(
    ffn: FfnOperands, out: torch.Tensor, rows_are_read_first: bool, prepare: Callable[[torch.Tensor], Start]
) -> Start:
    """What `prepare` makes for `out`, or by way of other memory for an `out` that may not be written to at once."""
    if _may_write(ffn, out, rows_are_read_first):
        return prepare(out)
    shape = out.shape
    start_elsewhere = prepare(torch.empty(*shape, dtype=out.dtype, device=out.device))

    @torch.no_grad()
    def start(ffn: FfnOperands, out: torch.Tensor) -> None:
        target = torch.empty(*shape, dtype=out.dtype, device=out.device)
        start_elsewhere(ffn, target)
        as_matrix(out).copy_(target)

    return start


def _may_write(ffn: FfnOperands, out: torch.Tensor, rows_are_read_first: bool) -> bool:
    """Whether `out` shares no memory with p and up_p, or shares it row by row where that does no harm."""
    return all(
        not _overlap(x, out) or (rows_are_read_first and _same_rows(x, out))
        for x in (ffn.p, ffn.up_p)
        if x is not None
    )


def _span(x: torch.Tensor) -> tuple[int, int]:
    """First byte and the one after the last."""
    start = x.data_ptr()
    return start, start + ((x.shape[0] - 1) * x.stride(0) + x.shape[1]) * x.element_size()


def _overlap(x: torch.Tensor, out: torch.Tensor) -> bool:
    (first, end), (out_first, out_end) = _span(x), _span(out)
    return first < out_end and out_first < end


def _same_rows(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether row i of both lies in row i of one wider matrix."""
    start = min(x.data_ptr(), out.data_ptr())
    end = max(
        x.data_ptr() + x.shape[1] * x.element_size(), out.data_ptr() + out.shape[1] * out.element_size()
    )
    return x.stride(0) == out.stride(0) and end - start <= x.stride(0) * x.element_size()
