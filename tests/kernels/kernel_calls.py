"""Calls of every compiled kernel in one form, for the tests that run all of them: endurance and the sanitizer.

A call names its kernel, makes its inputs on the CPU in a dtype, and runs them by a backend. Its reference is the op's
own definition in fp64, which the test of each op compares with an independent formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from attention_cases import AttentionCase, attention_inputs, same
from ffn_block_cases import BlockForm, block_inputs, run_block, run_hopper
from ffn_cases import Form, operands
from ffn_cases import run as run_op
from kernel_cases import GPU_DTYPES, guarded
from rank_space_cases import Case, inputs_of
from rebuild_cases import RebuildCase, rebuild_inputs
from rotary_cases import rotary_inputs

from flashsvd.kernels import embed_norm
from flashsvd.kernels.ffn.hopper import hopper_reads, hopper_tiles, launch_hopper
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.plan import kernel_takes
from flashsvd.kernels.ffn.tiles import FfnTiles, ffn_tiles
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.linear import linear as linear_op
from flashsvd.kernels.linear.hopper import TILES, LinearTiles, by_tiles
from flashsvd.kernels.norm import Kind, fused_norm
from flashsvd.kernels.tiles import shared_limit_bytes

EPS = 1e-5
HALF_DTYPES = (torch.float16, torch.bfloat16)
FfnPath = Literal["kernel", "hopper", "hopper tall", "chunked"]


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with `change` applied to every tensor in it, through tuples and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def floats_mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """As `mapped`, leaving masks, tables and indices as they are."""
    return mapped(value, lambda x: change(x) if x.is_floating_point() else x)


@dataclass(frozen=True)
class KernelCall:
    """One call of one kernel. `run` takes the inputs, a backend, and where to write or None."""

    kernel: str
    name: str
    inputs: Callable[[torch.dtype], Any]
    run: Callable[[Any, str | None, torch.Tensor | None], torch.Tensor]
    dtypes: tuple[torch.dtype, ...] = GPU_DTYPES
    aligned: bool = False
    """Whether a guard has to keep rows on 16 bytes, as TMA and the wide loads of rank-space attention want."""
    needs_hopper: bool = False
    takes_out: bool = True

    @property
    def id(self) -> str:
        return f"{self.kernel}: {self.name}"

    def fence(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor inside NaN."""
        return guarded(tensor, 8, 8) if self.aligned else guarded(tensor)

    def runs_on(self, device: str) -> bool:
        """Whether the device has what the compiled kernel needs."""
        return not self.needs_hopper or torch.cuda.get_device_capability(device)[0] == 9

    def expected(self, given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the gate compares with: the definition in fp64, and in the inputs' own dtype."""
        exact = self.run(floats_mapped(given, torch.Tensor.double), "naive", None)
        return exact, self.run(given, "naive", None)


def rank_space(case: Case, aligned: bool = False) -> KernelCall:
    return KernelCall(
        "rank_space",
        case.name,
        functools.partial(inputs_of, case),
        lambda given, backend, out: given.run(backend, out),
        aligned=aligned,
    )


def one_rank(case: Case) -> KernelCall:
    """Rank-space attention whose heads have one rank, which is a kernel of its own where there is Hopper's."""
    return replace(rank_space(case, True), kernel="rank_space_hopper", dtypes=HALF_DTYPES, needs_hopper=True)


def attention(case: AttentionCase, aligned: bool = False) -> KernelCall:
    return KernelCall(
        "attention",
        case.name,
        functools.partial(attention_inputs, case),
        lambda given, backend, out: given.run(backend),
        aligned=aligned,
        takes_out=False,
    )


def ffn(form: Form, path: FfnPath = "kernel") -> KernelCall:
    """A feed-forward op by the way named, whatever the plan would choose."""
    hopper = path.startswith("hopper")
    # In half types Triton's kernel takes no others.
    whole = not any(size % 8 for size in (form.width, form.rank_in, form.rank_up, form.rank_out))
    form_name = "glu" if form.rank_up else "ffn_v2" if form.out_width else "ffn"
    return KernelCall(
        {"kernel": form_name, "chunked": f"{form_name}_chunked"}.get(path, "ffn_hopper"),
        f"{form.name}{' tall' if path == 'hopper tall' else ''}",
        functools.partial(operands, form),
        functools.partial(_run_ffn, path),
        dtypes=HALF_DTYPES if hopper else GPU_DTYPES if whole or path == "chunked" else (torch.float32,),
        aligned=hopper or whole,
        needs_hopper=hopper,
    )


def _run_ffn(
    path: FfnPath, given: FfnOperands, backend: str | None, out: torch.Tensor | None
) -> torch.Tensor:
    if backend != "triton":
        return run_op(given, backend, out)
    if path == "chunked":
        return run_op(given, "torch", out)
    if out is None:
        out = torch.empty(given.rows, given.result_width, dtype=given.p.dtype, device=given.p.device)
    if path == "kernel":
        from flashsvd.kernels.ffn.launch import launch_ffn

        major, minor = torch.cuda.get_device_capability(given.p.device)
        tiles = triton_tiles(given, 10 * major + minor)
        assert kernel_takes(tiles, given.rank_out, given.out_width, given.p.dtype, given.wide_loads)
        return launch_ffn(given, tiles, out)
    # Tall tiles are two warpgroups; the sanitizer wants them on few rows.
    rows = max(given.rows, 1 << 14) if path == "hopper tall" else given.rows
    wide = hopper_tiles(rows, given.rank_in, given.rank_out)
    assert wide is not None and hopper_reads(given)
    return launch_hopper(given, wide, out)


def triton_tiles(given: FfnOperands, sm: int) -> FfnTiles:
    """Tiles of the Triton feed-forward kernel on a GPU of compute capability `sm`."""
    return ffn_tiles(
        given.rows,
        given.width,
        given.rank_in,
        given.rank_out,
        given.p.dtype,
        rank_up=given.rank_up,
        out_width=given.out_width,
        shared_limit_bytes=shared_limit_bytes(sm),
    )


def ffn_block(form: BlockForm, tall: bool = False) -> KernelCall:
    """The feed-forward sublayer by its one kernel, whatever the plan would choose; `tall`: by tiles of many rows."""
    return KernelCall(
        "ffn_block_hopper",
        f"{form.name}{' tall' if tall else ''}",
        functools.partial(block_inputs, form),
        functools.partial(_run_block, tall),
        dtypes=HALF_DTYPES,
        aligned=True,
        needs_hopper=True,
    )


def _run_block(
    tall: bool, given: BlockOperands, backend: str | None, out: torch.Tensor | None
) -> torch.Tensor:
    # It writes over its input, which is to be the same for the next call.
    given = given._replace(x=given.x.clone() if out is None else out.copy_(given.x))
    return run_hopper(given, tall) if backend == "triton" else run_block(given, backend)


class LinearInputs(NamedTuple):
    """The arguments of one product."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def linear(rows: int, width: int, depth: int, bias: bool = True, tiles: LinearTiles = TILES) -> KernelCall:
    """A product by the Hopper kernel, whatever would be worth it."""
    name = f"M{rows} N{width} K{depth}{'' if bias else ' no bias'}"
    return KernelCall(
        "linear_hopper",
        name if tiles == TILES else f"{name} by {tiles.block_m}x{tiles.block_n}x{tiles.block_k}",
        functools.partial(linear_inputs, (rows,), width, depth, bias),
        functools.partial(_run_linear, tiles),
        dtypes=HALF_DTYPES,
        aligned=True,
        needs_hopper=True,
    )


def linear_inputs(
    leading: tuple[int, ...], width: int, depth: int, bias: bool, dtype: torch.dtype, seed: int = 0
) -> LinearInputs:
    """x [*leading, depth], and a weight and a bias that make outputs of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, shift = (
        torch.randn(*shape, generator=generator) for shape in ((*leading, depth), (width, depth), (width,))
    )
    return LinearInputs(x.to(dtype), (weight / depth**0.5).to(dtype), shift.to(dtype) if bias else None)


def _run_linear(
    tiles: LinearTiles, given: LinearInputs, backend: str | None, out: torch.Tensor | None
) -> torch.Tensor:
    if backend != "triton":
        made = linear_op(*given, backend=backend)
        return made if out is None else out.copy_(made)
    return multiply(given, out, tiles)


def multiply(
    given: LinearInputs, out: torch.Tensor | None = None, tiles: LinearTiles = TILES
) -> torch.Tensor:
    """The product by the Hopper kernel, into out."""
    if out is None:
        shape = (*given.x.shape[:-1], given.weight.shape[0])
        out = torch.empty(shape, dtype=given.x.dtype, device=given.x.device)
    by_tiles(*given, out, tiles)(*given, out)
    return out


@dataclass(frozen=True)
class NormInputs:
    """The arguments of one norm: of `x` alone, or of the sum of rows that `x` and `index` look up."""

    x: tuple[torch.Tensor, ...]
    index: tuple[torch.Tensor, ...]
    weight: torch.Tensor
    shift: torch.Tensor
    bias: torch.Tensor
    kind: Kind

    def norm(self, backend: str | None, out: torch.Tensor | None) -> torch.Tensor:
        return fused_norm(
            self.x[0], self.weight, self.shift, EPS, bias=self.bias, kind=self.kind, out=out, backend=backend
        )

    def embed(self, backend: str | None) -> torch.Tensor:
        return embed_norm(
            self.x,
            self.index,
            self.weight,
            self.shift,
            EPS,
            bias=self.bias,
            kind=self.kind,
            backend=backend,
        )


def norm(rows: int, width: int, kind: Kind) -> KernelCall:
    return KernelCall(
        "norm",
        f"{kind} M{rows} N{width}",
        lambda dtype: _norm_inputs((rows,), width, kind, dtype, ()),
        lambda given, backend, out: given.norm(backend, out),
    )


def embedding(
    batch: int, seq: int, width: int, kind: Kind, tables: int = 3, index_dtype: torch.dtype = torch.int64
) -> KernelCall:
    def inputs(dtype: torch.dtype) -> NormInputs:
        generator = torch.Generator().manual_seed(seq)
        sizes = (50, 31, 2)[:tables]
        # Positions are the same for every sequence.
        batches = (batch, 1, batch)[:tables]
        index = tuple(
            torch.randint(size, (count, seq), generator=generator).to(index_dtype)
            for size, count in zip(sizes, batches, strict=True)
        )
        return _norm_inputs(sizes, width, kind, dtype, index)

    return KernelCall(
        "embedding",
        f"{kind} B{batch} S{seq} N{width} of {tables}",
        inputs,
        lambda given, backend, out: given.embed(backend),
        takes_out=False,
    )


def _norm_inputs(
    rows: tuple[int, ...], width: int, kind: Kind, dtype: torch.dtype, index: tuple[torch.Tensor, ...]
) -> NormInputs:
    """A mean far from 0, so that leaving it out shows."""
    generator = torch.Generator().manual_seed(width)
    x = tuple((torch.randn(count, width, generator=generator) * 2 + 3).to(dtype) for count in rows)
    weight, shift, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(3))
    return NormInputs(x, index, weight, shift, bias, kind)


def rotary(batch: int, seq: int, heads: int, kv_heads: int, head_dim: int, own: bool = False) -> KernelCall:
    return KernelCall(
        "rotary",
        f"B{batch} S{seq} H{heads} Hk{kv_heads} h{head_dim}{' own' if own else ''}",
        lambda dtype: rotary_inputs(batch, seq, heads, kv_heads, head_dim, own, dtype),
        lambda given, backend, out: given.run(backend, out),
    )


def rebuild(case: RebuildCase, dtypes: tuple[torch.dtype, ...] = GPU_DTYPES) -> KernelCall:
    return KernelCall(
        "rebuild",
        case.name,
        functools.partial(rebuild_inputs, case),
        lambda given, backend, out: given.run(backend),
        dtypes=dtypes,
        aligned=True,
        takes_out=False,
    )


def attention_of_heads(
    name: str,
    seq: int,
    ranks: tuple[int, ...],
    head_dim: int,
    batch: int,
    aligned: bool = False,
    **others: Any,
) -> KernelCall:
    count = {"heads": len(ranks), "kv_heads": len(ranks)}
    return attention(same(name, seq, head_dim, ranks, batch=batch, **count, **others), aligned)
