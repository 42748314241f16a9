"""Carries out a checked call on the backend named: the kernel, chunks through cuBLAS, or tiles on a CPU."""

from __future__ import annotations

import functools

import torch

from flashsvd.kernels.backend import Backend
from flashsvd.kernels.ffn.hopper import HopperTiles, hopper_reads, launch_hopper
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.plan import FfnPlan, ffn_plan
from flashsvd.kernels.ffn.stream import stream_ffn
from flashsvd.kernels.ffn.tiles import FfnTiles, ffn_tiles
from flashsvd.kernels.tiles import ffn_stream_tiles


def run_ffn(ffn: FfnOperands, out: torch.Tensor, backend: Backend) -> None:
    """Fills `out` [M, R2 or N]. On "triton" as `ffn_plan` says; "interpret" takes the kernel wherever it can."""
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
            _kernel(ffn, tiles, out)
            return
    if not ffn.p.is_cuda:
        stream = ffn_stream_tiles(
            ffn.rows,
            ffn.width,
            ffn.p.dtype,
            gated=ffn.rank_up > 0,
            rank_out=ffn.rank_out if ffn.out_width else 0,
        )
        _stream(ffn, out, stream.block_m, stream.block_d)
        return
    plan = plan_of(ffn)
    if backend == "triton" and isinstance(plan.tiles, HopperTiles):
        # A program has read its rows before it writes them.
        target = out if _may_write(ffn, out, True) else torch.empty_like(out)
        launch_hopper(ffn, plan.tiles, target)
        if target is not out:
            out.copy_(target)
    elif backend == "triton" and isinstance(plan.tiles, FfnTiles):
        _kernel(ffn, plan.tiles, out)
    else:
        _stream(ffn, out, plan.chunk_rows or min(ffn.rows, 4096), ffn.width)


def plan_of(ffn: FfnOperands) -> FfnPlan:
    """`ffn_plan` for these tensors and the GPU that they are on, or the CPU."""
    kind, multiprocessors = ("cpu", None) if not ffn.p.is_cuda else _gpu(ffn.p.device)
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
    )


@functools.cache
def _gpu(device: torch.device) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(device)
    return f"sm_{properties.major}{properties.minor}", properties.multi_processor_count


def _kernel(ffn: FfnOperands, tiles: FfnTiles, out: torch.Tensor) -> None:
    from flashsvd.kernels.ffn.launch import launch_ffn

    # A program has read all of its rows before it writes them, but not those of the next output block's.
    alone = tiles.out_blocks(ffn.rank_out) == 1
    target = out if _may_write(ffn, out, alone) else torch.empty_like(out)
    launch_ffn(ffn, tiles, target)
    if target is not out:
        out.copy_(target)


def _stream(ffn: FfnOperands, out: torch.Tensor, block_m: int, block_d: int) -> None:
    # As above: with several tiles along D, the second would read what the first has written.
    whole = block_d >= ffn.width or ffn.out_width > 0
    target = out if _may_write(ffn, out, whole) else torch.empty_like(out)
    stream_ffn(ffn, target, block_m, block_d)
    if target is not out:
        out.copy_(target)


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
