"""Every instruction of a program as a kernel with all that it is given, ready to be started in turn."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from flashsvd.kernels.backend import Gpu, gpu_of
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.step.attend_kernel import attend_kernel
from flashsvd.kernels.step.block_kernel import block_kernel
from flashsvd.kernels.step.head_kernel import head_kernel
from flashsvd.kernels.step.instructions import (
    Attend,
    Embed,
    Heads,
    Instruction,
    Norm,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
)
from flashsvd.kernels.step.row_kernel import row_kernel
from flashsvd.kernels.step.state_kernels import embed_kernel, layer_norm_kernel
from flashsvd.kernels.step.tiles import (
    MOST_SHARES,
    WIDE_BATCH,
    RowTiles,
    WideTiles,
    attend_tiles,
    head_tiles,
    product_tiles,
    shares_of,
)
from flashsvd.kernels.step.wide_kernel import wide_kernel
from flashsvd.kernels.tiles import next_power_of_two

INTERPRETED = Gpu(0, 0, 132)
"""What stands in for a GPU where kernels are interpreted: as many multiprocessors as an H200 has."""
EMBED_COLUMNS = 1024
"""Columns to a program of the embedding."""

Start = functools.partial[None]
"""A launch with its tensors."""


class Chain:
    """A program, ready to run: calling it starts a kernel for every instruction, each of which begins while the one
    before it ends.

    Instructions run one after another, so all of them leave what their programs owe one another in the same memory:
    `sums`, and `arrived`, counters that are zero before and after.
    """

    def __init__(self, program: Program, gpu: Gpu | None = None) -> None:
        """gpu: the one that kernels are chosen for; that of the program's tensors unless given."""
        self.program = program
        self.device = program.tokens.device
        self.gpu = gpu or (gpu_of(self.device) if self.device.type == "cuda" else INTERPRETED)
        # Older GPUs have no programmatic dependent launch.
        self.chained = self.gpu.major >= 9
        self.shares = next((s.heads.shape[0] for s in program.instructions if isinstance(s, Attend)), 1)
        self._parts: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []
        sizes = [_scratch(step, self) for step in program.instructions]
        sums, counters = (max(column, default=1) for column in zip(*sizes, strict=True))
        self.sums = torch.empty(sums, dtype=torch.float32, device=self.device)
        self.arrived = torch.zeros(counters, dtype=torch.int32, device=self.device)
        self._starts = [_prepared(step, self) for step in program.instructions]

    def __call__(self) -> None:
        """One step."""
        for start in self._starts:
            start()

    def given(self) -> list[tuple[Any, dict[str, object], dict[str, int]]]:
        """Of every kernel in turn what its first call gives Triton (`Launch.given`)."""
        launches: list[Any] = [start.func for start in self._starts]
        return [launch.given(*start.args) for launch, start in zip(launches, self._starts, strict=True)]

    @property
    def launches(self) -> int:
        """Kernels of a step."""
        return len(self._starts)

    @property
    def workspace_bytes(self) -> int:
        """Of what programs leave to one another."""
        return sum(tensor.nbytes for tensor in (self.sums, self.arrived, *self._kept))

    def tiles(self, step: Rows) -> RowTiles | WideTiles:
        """Tiles of a product."""
        weight, up = step.product.weight, (step.up or step.product).weight
        rows, width = len(weight), max(weight.shape[1], up.shape[1])
        gpu, gated = self.gpu, step.up is not None
        return product_tiles(
            self.program.batch, rows, width, weight.dtype, gpu.major, gpu.multiprocessors, gated=gated
        )

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Holds on to a tensor that a kernel is given."""
        self._kept.append(tensor)
        return tensor

    def writes(self, squares: Squares, parts: int) -> torch.Tensor:
        """Notes in how many parts an instruction leaves its squares, for the next that reads them."""
        assert parts <= squares.parts.shape[1]
        self._parts[squares.parts.data_ptr()] = parts
        return squares.parts

    def reads(self, squares: Squares) -> int:
        """In how many parts the squares were left."""
        return self._parts[squares.parts.data_ptr()]

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        tensors: dict[str, torch.Tensor],
        *,
        num_warps: int,
        num_stages: int = 1,
        maxnreg: int | None = None,
        **fixed: Any,
    ) -> Start:
        """A kernel of the chain with its tensors."""
        fixed["CHAINED"] = self.chained
        options = {"num_warps": num_warps, "num_stages": num_stages}
        if maxnreg is not None:
            options["maxnreg"] = maxnreg
        if self.chained:
            options["launch_pdl"] = True
        start = Launch(kernel, grid, tuple(tensors), fixed, self.device, **options)
        return functools.partial(start, *tensors.values())


def _left(to: Scaled | None, parts: int, chain: Chain, stand_in: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a kernel is given to leave a hidden state for the next RMS norm in `parts` parts."""
    if to is None:
        return {"gamma": stand_in, "scaled": stand_in, "out_squares": chain.sums}
    return {"gamma": to.weight, "scaled": to.scaled, "out_squares": chain.writes(to.squares, parts)}


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"


@functools.singledispatch
def _scratch(step: Instruction, chain: Chain) -> tuple[int, int]:
    """Numbers and counters that an instruction's programs need between them."""
    return 1, 1


@_scratch.register
def _(step: Rows, chain: Chain) -> tuple[int, int]:
    tiles = chain.tiles(step)
    blocks = math.ceil(step.product.weight.shape[0] / tiles.block_n)
    kinds, x_rows = 1 if step.up is None else 2, _rows_of_x(chain.program.batch, tiles)
    return blocks * tiles.splits * kinds * tiles.block_n * x_rows, blocks


@_scratch.register
def _(step: Attend, chain: Chain) -> tuple[int, int]:
    pairs = step.k_cache.shape[0] * step.k_cache.shape[1]
    group = chain.program.heads // step.k_cache.shape[1]
    return pairs * MOST_SHARES * group * (step.v_cache.shape[-1] + 2), pairs


def _bias_of(product: Product, wanted: bool, chain: Chain) -> torch.Tensor:
    """A product's bias. Where it has none: zeros if the other product of its instruction has one, and else anything."""
    if product.bias is None and wanted:
        return chain.keep(product.weight.new_zeros(len(product.weight)))
    return product.weight if product.bias is None else product.bias


def _rows_of_x(batch: int, tiles: object = None) -> int:
    """Of a tile of x."""
    if isinstance(tiles, WideTiles):
        return WIDE_BATCH
    return 1 if batch == 1 else next_power_of_two(batch)


@functools.singledispatch
def _prepared(step: Instruction, chain: Chain) -> Start:
    raise TypeError(f"no such instruction: {step!r}")


@_prepared.register
def _(step: Embed, chain: Chain) -> Start:
    program, width = chain.program, step.out.shape[1]
    parts = math.ceil(width / EMBED_COLUMNS)
    positions = step.table if step.positions is None else step.positions
    left = _left(step.next, parts, chain, step.out)
    return chain.launch(
        embed_kernel,
        (program.batch, parts),
        {
            "tokens": program.tokens,
            "table": step.table,
            "positions": positions,
            "place": program.place,
            "first": program.first,
            "out": step.out,
            **left,
        },
        num_warps=4,
        offset=step.offset,
        width=width,
        LEARNED=step.positions is not None,
        SCALED=step.next is not None,
        BLOCK=EMBED_COLUMNS,
    )


@_prepared.register
def _(step: Norm, chain: Chain) -> Start:
    width = step.x.shape[1]
    return chain.launch(
        layer_norm_kernel,
        (chain.program.batch,),
        {"x": step.x, "weight": step.weight, "bias": step.bias, "out": step.out},
        num_warps=8,
        width=width,
        eps=chain.program.eps,
        BLOCK=next_power_of_two(width),
    )


@_prepared.register
def _(step: Rows, chain: Chain) -> Start:
    tiles, batch = chain.tiles(step), chain.program.batch
    blocks = math.ceil(len(step.product.weight) / tiles.block_n)
    tensors, fixed = _of_rows(step, blocks, chain)
    fixed |= {"BN": tiles.block_n, "BK": tiles.block_k}
    if batch > 1:
        tensors |= {"sums": chain.sums, "arrived": chain.arrived}
        fixed |= {
            "batch": batch,
            "x_stride8": step.product.x.stride(0) // 8,
            "x_up_stride8": (step.up or step.product).x.stride(0) // 8,
            "out_stride": step.out.stride(0),
            "BM": _rows_of_x(batch, tiles),
            "SPLITS": tiles.splits,
        }
    grid, num_warps, dtype = (blocks, tiles.splits), tiles.num_warps, step.product.weight.dtype
    if isinstance(tiles, WideTiles):
        fixed |= _steps(step, tiles.splits * tiles.block_k) | {"AHEAD": tiles.ahead, "X_AHEAD": tiles.x_ahead}
        fixed["BP"] = max(32, fixed["BP"])
        return chain.launch(wide_kernel, grid, tensors, num_warps=num_warps, maxnreg=tiles.registers, **fixed)
    fixed["EXACT"] = dtype == torch.float32
    if batch == 1:
        fixed |= _steps(step, tiles.block_k) | {"AHEAD": tiles.num_stages}
        return chain.launch(row_kernel, grid, tensors, num_warps=num_warps, **fixed)
    fixed |= {"one": 1.0, "PRECISION": _precision(dtype)}
    return chain.launch(
        block_kernel, grid, tensors, num_warps=num_warps, num_stages=tiles.num_stages, **fixed
    )


def _of_rows(step: Rows, blocks: int, chain: Chain) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What all kernels of products are given: tensors, and what is the same in every call."""
    program, product, up = chain.program, step.product, step.up or step.product
    squares = product.normed or up.normed
    parts = 1 if squares is None else chain.reads(squares)
    has_bias = product.bias is not None or up.bias is not None
    tensors = {
        "x": product.x,
        "w": product.weight,
        "bias": _bias_of(product, has_bias, chain),
        "x_up": up.x,
        "w_up": up.weight,
        "bias_up": _bias_of(up, has_bias, chain),
        "squares": chain.sums if squares is None else squares.parts,
        "residual": step.out if step.added is None else step.added,
        "out": step.out,
        **_left(step.next, blocks, chain, step.out),
    }
    fixed: dict[str, Any] = {
        "rows": len(product.weight),
        "width8": product.weight.shape[1] // 8,
        "stride8": product.weight.stride(0) // 8,
        "width_up8": up.weight.shape[1] // 8,
        "stride_up8": up.weight.stride(0) // 8,
        "norm_width": 1 if squares is None else squares.width,
        "squares_parts": parts,
        "eps": program.eps,
        "HAS_BIAS": has_bias,
        "ACTIVATION": program.activation if step.activated else "none",
        "GATED": step.up is not None,
        "NORMED": product.normed is not None,
        "NORMED_UP": up.normed is not None,
        "ADDED": step.added is not None,
        "SCALED": step.next is not None,
        "BP": next_power_of_two(parts),
    }
    return tensors, fixed


def _steps(step: Rows, columns: int) -> dict[str, int]:
    """Of a program over both products, so many columns in each."""
    width, width_up = (product.weight.shape[1] for product in (step.product, step.up or step.product))
    return {"CHUNKS": math.ceil(width / columns), "CHUNKS_UP": math.ceil(width_up / columns)}


@_prepared.register
def _(step: Heads, chain: Chain) -> Start:
    batch, width = chain.program.batch, step.factors[0].u.shape[1]
    tiles = head_tiles(batch, width, step.p.dtype)
    units = [
        [
            head.column + part.start,
            head.u[part.start :, at:].data_ptr(),
            len(part),
            width - at,
            head.at + at,
            index,
        ]
        for head in step.factors
        for index, part in enumerate(shares_of(head.u.shape[0], chain.shares))
        for at in range(0, width, tiles.block_h)
    ]
    table = chain.keep(torch.tensor(units, dtype=torch.int64, device=chain.device))
    return chain.launch(
        head_kernel,
        (len(units),),
        {"p": step.p, "like": step.p, "table": table, "out": step.out},
        num_warps=tiles.num_warps,
        num_stages=1 if batch == 1 else tiles.num_stages,
        batch=batch,
        p_stride8=step.p.stride(0) // 8,
        out_stride=step.out.stride(1),
        share_stride=step.out.stride(0),
        H=width,
        BH=tiles.block_h,
        BM=_rows_of_x(batch),
        BK=tiles.block_k,
        CHUNKS=math.ceil(max(unit[2] for unit in units) / tiles.block_k),
        AHEAD=tiles.num_stages,
        LANES=min(tiles.block_k, max(1, tiles.num_warps * 256 // tiles.block_h)),
        PRECISION=_precision(step.p.dtype),
    )


@_prepared.register
def _(step: Attend, chain: Chain) -> Start:
    program = chain.program
    batch, kv_heads, capacity, d = step.k_cache.shape
    dv, group = step.v_cache.shape[-1], program.heads // kv_heads
    dtype, pairs = step.k_cache.dtype, batch * kv_heads
    tiles = attend_tiles(pairs, group, max(d, dv), dtype, chain.gpu.multiprocessors, capacity=capacity)
    cos, sin = program.turns or (chain.sums, chain.sums)
    none = step.out
    return chain.launch(
        attend_kernel,
        (pairs, tiles.splits),
        {
            "heads": step.heads,
            "bias": none if step.bias is None else step.bias,
            "q_norm": none if step.q_norm is None else step.q_norm,
            "k_norm": none if step.k_norm is None else step.k_norm,
            "k_cache": step.k_cache,
            "v_cache": step.v_cache,
            "cos": cos,
            "sin": sin,
            "place": program.place,
            "first": program.first,
            "out": step.out,
            "parts": chain.sums,
            "arrived": chain.arrived,
        },
        num_warps=tiles.num_warps,
        batch_stride=step.heads.stride(1),
        share_stride=step.heads.stride(0),
        k_at=step.k_at,
        v_at=step.v_at,
        capacity=capacity,
        window=-1 if step.window is None else step.window,
        scale=step.scale,
        eps=program.eps,
        HK=kv_heads,
        GROUP=group,
        D=d,
        DV=dv,
        BG=tiles.block_g,
        BD=next_power_of_two(d),
        BV=next_power_of_two(dv),
        BT=tiles.block_t,
        SPLITS=tiles.splits,
        SHARES=chain.shares,
        HAS_BIAS=step.bias is not None,
        ROTARY=program.turns is not None,
        HEAD_NORM=step.q_norm is not None,
        PRECISION=_precision(dtype),
    )
