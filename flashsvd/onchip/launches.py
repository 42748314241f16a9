"""A kernel call with operands of its sizes, as the library's own launch makes it: kernel, grid, arguments, options."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.attention.naive import Rotation
from flashsvd.kernels.attention.tiles import Layouts
from flashsvd.kernels.ffn import hopper as ffn_hopper
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.tiles import FfnTiles
from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.kernels.rank_space import hopper as rank_space_hopper
from flashsvd.kernels.tiles import RankSpaceTiles
from flashsvd.kernels.tuning import wanted
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiling import DTYPES, Prepared


@dataclass(frozen=True, eq=False)
class Launched:
    """A launch that can be made again, by this kernel or by one that takes the same after some arguments of its own.

    `out`: what it fills. `kept`: what else has to stay in memory.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    out: torch.Tensor
    kept: object

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def start(self, kernel: Any = None, *ahead: Any) -> Any:
        """Starts it, or another kernel with the arguments `ahead` before its own; what Triton returns of it."""
        return (kernel or self.kernel)[self.grid](*ahead, *self.arguments, **self.options)


def launched(call: KernelCall, prepared: Prepared, device: torch.device, seed: int = 0) -> Launched:
    """The launch of a call, with random operands on `device`; nothing is started.

    prepared: what `flashsvd.onchip.compiling.prepare` says of the call for that GPU; the launch has to agree with it.
    Raises InputError, in one line, where the library runs such a call by something else.
    """
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(shape, generator=random, device=device, dtype=torch.float32)
        return (drawn * scale).to(DTYPES[call.dtype])

    make = {
        "ffn": _ffn,
        "ffn_v2": _ffn,
        "ffn_hopper": _ffn_hopper,
        "attention": _attention,
        "rank_space": _rank_space,
        "rank_space_hopper": _rank_space_hopper,
        "step": _step,
    }[call.kernel]
    kernel, run, kept = make(call, prepared.tiles, draw)
    with torch.no_grad(), captured(kernel) as launches:
        out = run()
    if len(launches) != 1:
        raise InputError("the library does not run this call as one launch of the kernel: choose other ranks")
    grid, arguments, options = launches[0]
    if math.prod(grid) != math.prod(prepared.grid):
        raise InputError(
            f"the launch has {math.prod(grid)} programs where {math.prod(prepared.grid)} were counted"
        )
    return Launched(kernel, grid, arguments, options, out, kept)


@contextlib.contextmanager
def captured(kernel: Any) -> Iterator[list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]]:
    """While inside, launches of a Triton kernel are noted, as grid, arguments and options, and not made.

    Raises InputError where Triton interprets.
    """
    from triton.runtime.jit import JITFunction

    if not isinstance(kernel, JITFunction):
        raise InputError(
            "Triton interprets its kernels in this process: unset TRITON_INTERPRET and start again"
        )
    noted: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def note(*arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        noted.append((tuple(grid), arguments, options))

    # What `kernel[grid]` calls; that of the class stays as it is.
    kernel.run = note
    try:
        yield noted
    finally:
        del kernel.run


Draw = Callable[..., torch.Tensor]
"""Random numbers of a shape, times `scale`."""
Made = tuple[Any, Callable[[], torch.Tensor], object]
"""A kernel, what launches it and gives what it fills, and what it reads."""


def _ffn(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.ffn.launch import launch_ffn
    from flashsvd.kernels.ffn.triton_kernel import ffn_kernel

    ffn = _operands(call, draw)
    out = ffn.p.new_empty(call.rows, ffn.result_width)
    return ffn_kernel, lambda: launch_ffn(ffn, FfnTiles(**tiles), out), ffn


def _ffn_hopper(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.ffn.hopper_kernel import ffn_hopper_kernel

    ffn = _operands(call, draw)
    if not ffn_hopper.hopper_reads(ffn):
        raise InputError("rows that do not start on 16 bytes cannot be read by TMA: take multiples of 8")
    out = ffn.p.new_empty(call.rows, ffn.result_width)
    chosen = ffn_hopper.HopperTiles(**tiles)
    return ffn_hopper_kernel, lambda: ffn_hopper.launch_hopper(ffn, chosen, out), ffn


def _operands(call: KernelCall, draw: Draw) -> FfnOperands:
    """Of a size that keeps all that is in between near 1, with the biases of the model family."""
    biased = call.activation != "silu"
    gated, fused = call.rank_up > 0, call.kernel == "ffn_v2"

    def factor(rows: int, rank: int) -> torch.Tensor:
        return draw(rows, rank, scale=rank**-0.5)

    return FfnOperands(
        draw(call.rows, call.rank),
        factor(call.width, call.rank),
        draw(call.width) if biased else None,
        factor(call.rank_out, call.width),
        call.activation,
        up_p=draw(call.rows, call.rank_up) if gated else None,
        up_u=factor(call.width, call.rank_up) if gated else None,
        up_b=draw(call.width) if gated and biased else None,
        u2=factor(call.hidden, call.rank_out) if fused else None,
        b2=draw(call.hidden) if fused and biased else None,
    )


def _attention(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.attention.launch import launch_attention
    from flashsvd.kernels.attention.triton_kernel import attention_kernel

    layouts: Layouts = tuple(  # type: ignore[assignment]
        HeadLayout((rank,) * heads, shared=call.shared) if rank else None
        for rank, heads in (
            (call.rank, call.heads),
            (call.rank, call.kv_heads),
            (call.rank_out, call.kv_heads),
        )
    )
    counts = (call.heads, call.kv_heads, call.kv_heads)
    q, k, v = (_projection(call, layout, heads, draw) for layout, heads in zip(layouts, counts, strict=True))
    rotation: Rotation | None = None
    if call.rotary:
        angles = torch.arange(call.seq, device=q.p.device)[:, None] * torch.logspace(
            0, -4, call.head_dim // 2, device=q.p.device
        )
        both = torch.cat((angles, angles), dim=-1)[None]
        rotation = (both.cos().to(q.p.dtype), both.sin().to(q.p.dtype))
    if wanted(q.p):
        raise InputError("FLASHSVD_AUTOTUNE is set: unset it, as the fixed choice of tiles is measured")

    def run() -> torch.Tensor:
        return launch_attention(
            q,
            k,
            v,
            call.heads,
            call.kv_heads,
            call.head_dim,
            None,
            call.head_dim**-0.5,
            call.causal,
            None,
            rotation,
        )

    return attention_kernel, run, (q, k, v, rotation)


def _projection(call: KernelCall, layout: HeadLayout | None, heads: int, draw: Draw) -> Projection:
    bias = None if call.rotary else draw(heads * call.head_dim)
    if layout is None:
        return Projection(draw(call.batch, call.seq, heads * call.head_dim), None, bias, None, None)
    factor = draw(layout.u_rows, call.head_dim, scale=layout.max_rank**-0.5)
    return Projection(draw(call.batch, call.seq, layout.p_width), factor, bias, layout, None)


def _rank_space(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.rank_space.launch import by_tiles
    from flashsvd.kernels.rank_space.triton_kernel import rank_space_kernel

    q, k, v, out, score, value = _heads(call, draw)
    scale, chosen = call.rank**-0.5, RankSpaceTiles(**tiles)

    def run() -> torch.Tensor:
        start = by_tiles(q, k, v, out, score, value, call.group, scale, None, None, call.causal, chosen)
        start(q, k, v, out, None)
        return out

    return rank_space_kernel, run, (q, k, v)


def _rank_space_hopper(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.rank_space.hopper_kernel import rank_space_hopper_kernel

    q, k, v, out, score, value = _heads(call, draw)
    if not rank_space_hopper.hopper_takes(q, k, v, score, value, call.group, None, call.causal):
        raise InputError("this GPU or this Triton does not run the kernel with such heads")
    fields = {**tiles, "parts": tuple(tiles["parts"])}
    chosen, scale = rank_space_hopper.HopperTiles(**fields), call.rank**-0.5

    def run() -> torch.Tensor:
        rank_space_hopper.by_tiles(q, k, v, out, score, value, scale, None, chosen)(q, k, v, out, None)
        return out

    return rank_space_hopper_kernel, run, (q, k, v)


def _heads(
    call: KernelCall, draw: Draw
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, HeadLayout, HeadLayout]:
    """q, k and v as column slices of one product, as the engine has them, an output, and their layouts."""
    score, value = (HeadLayout((rank,) * call.kv_heads) for rank in (call.rank, call.rank_out))
    widths = (call.group * score.p_width, score.p_width, value.p_width)
    q, k, v = draw(call.batch, call.seq, sum(widths)).split(widths, dim=-1)
    return q, k, v, q.new_empty(call.batch, call.seq, call.group * value.p_width), score, value


def _step(call: KernelCall, tiles: dict[str, Any], draw: Draw) -> Made:
    from flashsvd.kernels.step.instructions import Product, Program, Rows
    from flashsvd.kernels.step.launch import Chain

    p = draw(call.batch, 2 * call.rank)
    gate, up = (
        Product(p[:, at : at + call.rank], draw(call.width, call.rank, scale=call.rank**-0.5), None)
        for at in (0, call.rank)
    )
    out = p.new_empty(call.batch, call.width)
    tokens = torch.zeros(call.batch, dtype=torch.int64, device=p.device)
    place, first = torch.zeros((), dtype=torch.int32, device=p.device), tokens.to(torch.int32)
    rows = Rows(gate, out, activated=True, up=up)
    chain = Chain(Program((rows,), tokens, place, first, None, 1, 1e-5, call.activation))

    def run() -> torch.Tensor:
        chain()
        return out

    kernel, _, _ = chain.given()[0]
    return kernel, run, chain
