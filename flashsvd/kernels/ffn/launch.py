"""Starts the Triton feed-forward kernel: tiles, grid and flags for the tensors at hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from flashsvd.kernels.backend import interpreting
from flashsvd.kernels.ffn.operands import FfnOperands, as_matrix
from flashsvd.kernels.ffn.tiles import FfnTiles
from flashsvd.kernels.ffn.triton_kernel import ffn_kernel
from flashsvd.kernels.starter import Launch


def launch_ffn(ffn: FfnOperands, tiles: FfnTiles, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` [M, R2], or [M, N] with an output factor, by `ffn_kernel`; arguments are already checked.

    Source: FlashSVD, arXiv 2508.01506, FFN v1 and v2.
    """
    prepare_launch(ffn, tiles, out)(ffn, out)
    return out


def prepare_launch(
    ffn: FfnOperands, tiles: FfnTiles, out: torch.Tensor
) -> Callable[[FfnOperands, torch.Tensor], None]:
    """What does the same for operands and an output that look like these, there as [..., R]. It keeps no tensor."""
    matrices = _matrices(ffn)
    strides = tuple(matrix.stride(0) for matrix in (*matrices, out))
    launch = Launch(
        ffn_kernel,
        (math.ceil(ffn.rows / tiles.block_m) * tiles.out_blocks(ffn.rank_out),),
        ("p", "u1", "up_p", "up_u", "v2", "u2", "b1", "up_b", "b2", "out"),
        {
            "rows": ffn.rows,
            "width": ffn.width,
            "rank_in": ffn.rank_in,
            "rank_up": ffn.rank_up,
            "rank_out": ffn.rank_out,
            "out_width": ffn.out_width,
            **{f"{name}_stride": stride for name, stride in zip(_STRIDED, strides, strict=True)},
            **ffn_constants(
                ffn.activation,
                ffn.p.dtype,
                (ffn.width, ffn.rank_in, ffn.rank_up, ffn.rank_out, ffn.out_width),
                (ffn.b1 is not None, ffn.up_b is not None, ffn.b2 is not None),
                strides,
                tiles,
                nvidia=not interpreting() and torch.version.hip is None,
            ),
        },
        ffn.p.device,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )

    def start(ffn: FfnOperands, out: torch.Tensor) -> None:
        matrices = _matrices(ffn)
        biases = (matrices[0] if bias is None else bias.contiguous() for bias in (ffn.b1, ffn.up_b, ffn.b2))
        launch(*matrices, *biases, out)

    return start


_STRIDED = ("p", "u1", "up_p", "up_u", "v2", "u2", "out")


def _matrices(ffn: FfnOperands) -> tuple[torch.Tensor, ...]:
    """p, u1, up_p, up_u, v2, u2, all with last stride 1; p, u1 and v2 stand in for what this call does not have and
    the kernel then never reads."""
    p, u1, v2 = as_matrix(ffn.p), _rows_in_memory(ffn.u1), _rows_in_memory(ffn.v2)
    up_p, up_u = p, u1
    if ffn.up_p is not None and ffn.up_u is not None:
        up_p, up_u = as_matrix(ffn.up_p), _rows_in_memory(ffn.up_u)
    return p, u1, up_p, up_u, v2, v2 if ffn.u2 is None else _rows_in_memory(ffn.u2)


def ffn_constants(
    activation: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int, int],
    biases: tuple[bool, bool, bool],
    strides: tuple[int, ...],
    tiles: FfnTiles,
    nvidia: bool,
) -> dict[str, int | bool | str]:
    """What `ffn_kernel` is compiled for.

    sizes: D, R1, rank of the up branch (0 without a gate), R2, width of the output factor (0 without one).
    biases: of the activated branch, of the up branch, of the output. strides: of the rows of p, u1, up_p, up_u,
    v2, u2, out. nvidia: whether PTX runs there, so that tanh is one instruction.
    """
    width, rank_in, rank_up, rank_out, out_width = sizes
    p, u1, up_p, up_u, v2, u2, out = strides
    gated, fused = rank_up > 0, out_width > 0
    exact = dtype == torch.float32

    def alignment(*numbers: int) -> int:
        # 8 elements of a half type are the widest load there is.
        return math.gcd(8, *numbers)

    return {
        "GATED": gated,
        "FUSE_OUT": fused,
        "HAS_BIAS": biases[0],
        "HAS_UP_BIAS": biases[1],
        "HAS_OUT_BIAS": biases[2],
        "ACTIVATION": activation,
        "EXACT": exact,
        "HW_TANH": nvidia and not exact,
        "ALIGN_R1": alignment(rank_in, p, u1),
        "ALIGN_UP": alignment(rank_up, up_p, up_u) if gated else 1,
        "ALIGN_D": alignment(width, v2),
        "ALIGN_R2": alignment(rank_out, u2, out_width, out) if fused else alignment(rank_out, out),
        "EVEN_D": width % tiles.block_d == 0,
        "EVEN_R1": rank_in % (tiles.block_r1 + tiles.tail_r1) == 0,
        "EVEN_UP": rank_up % (tiles.block_up + tiles.tail_up) == 0,
        "EVEN_R2": rank_out % (tiles.block_r2 + tiles.tail_r2) == 0,
        "ONE_PASS": tiles.one_pass,
        "BLOCK_M": tiles.block_m,
        "BLOCK_D": tiles.block_d,
        "BLOCK_R1": tiles.block_r1,
        "TAIL_R1": tiles.tail_r1,
        "BLOCK_UP": tiles.block_up,
        "TAIL_UP": tiles.tail_up,
        "BLOCK_R2": tiles.block_r2,
        "TAIL_R2": tiles.tail_r2,
        "BLOCK_N": tiles.block_n,
    }


def _rows_in_memory(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
