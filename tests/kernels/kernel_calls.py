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
from ffn_block_cases import BlockForm, block_inputs, run_block, run_hopper
from ffn_cases import Form, operands
from ffn_cases import run as run_op
from kernel_cases import GPU_DTYPES, AttentionCase, attention_inputs, guarded, same
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
from flashsvd.kernels.linear.hopper import TILES, LinearTiles, by_tiles, linear_candidates
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


def _heads(
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


ENDURANCE = (
    rank_space(Case("plain", 513, (40,) * 12, (40,) * 12, batch=8)),
    rank_space(Case("masked", 511, (40,) * 12, (40,) * 12, mask="random", batch=8)),
    one_rank(Case("plain", 512, (40,) * 12, (40,) * 12, batch=8)),
    one_rank(Case("masked", 513, (40,) * 12, (40,) * 12, mask="one empty", batch=8)),
    one_rank(Case("ranks differ", 1025, (32,) * 12, (64,) * 12, batch=4)),
    one_rank(Case("long", 8200, (24,) * 2, (32,) * 2, batch=1)),
    rank_space(Case("window", 1025, (40,) * 12, (64,) * 12, mask="right", batch=4, window=64)),
    rank_space(Case("grouped", 513, (40,) * 4, (24,) * 4, group=3, batch=8)),
    rank_space(Case("mixed ranks", 513, (8, 40, 64, 24) * 3, (16, 64, 8, 40) * 3, batch=8)),
    rank_space(Case("mixed odd ranks", 97, (7, 59, 1, 40), (16, 1, 64, 59), mask="left", batch=36)),
    rank_space(Case("rank loop", 257, (200, 136), (40, 8), mask="left", batch=32)),
    rank_space(Case("short", 17, (16, 8), (8, 16), mask="one empty", batch=150)),
    _heads("plain", 257, (40,) * 12, 64, 4),
    _heads("whole tiles", 512, (32,) * 12, 64, 8, True),
    _heads("aligned, masked", 257, (40,) * 12, 64, 8, True, mask="random"),
    _heads("masked, ranks differ", 97, (7, 40, 59, 16), 80, 36, mask="random"),
    _heads("whole matrix, rank loop", 257, (100,) * 12, 64, 4, shared=True, mask="right"),
    ffn(Form(8449, 1024, 240, 240)),
    ffn(Form(4097, 1024, 192, 296, "relu")),
    ffn(Form(1025, 2312, 56, 56, "silu", bias=False)),
    ffn(Form(8449, 1024, 240, 240), "hopper"),
    ffn(Form(8449, 1024, 240, 264, "silu"), "hopper"),
    ffn(Form(4097, 1024, 240, 240, "gelu_tanh"), "hopper"),
    ffn(Form(4097, 520, 312, 312, "relu", bias=False), "hopper"),
    ffn(Form(129, 72, 40, 16), "hopper"),
    ffn_block(BlockForm(8449, 768, 1024, 240, 240)),
    ffn_block(BlockForm(4097, 1024, 520, 104, 128, "silu", without=("entry", "b1"))),
    ffn_block(BlockForm(1025, 2048, 200, 256, 240, "gelu_tanh"), tall=True),
    linear(8192, 1440, 768),
    linear(16387, 240, 776, bias=False),
    linear(8449, 2312, 264),
    ffn(Form(4097, 1024, 512, 512), "chunked"),
    ffn(Form(1025, 520, 59, 59, "silu", rank_up=40), "chunked"),
    ffn(Form(4097, 1024, 96, 240, "gelu", rank_up=96)),
    ffn(Form(1025, 1000, 56, 56, "silu", rank_up=40, bias=False)),
    ffn(Form(4097, 1024, 128, 128, "gelu_tanh", out_width=768)),
    ffn(Form(1025, 520, 56, 56, "relu", out_width=104, bias=False)),
    *(norm(*shape, kind) for kind in ("layer", "rms") for shape in ((4099, 768), (513, 4096), (129, 97))),
    embedding(9, 511, 768, "layer"),
    embedding(5, 97, 1030, "rms", 2, torch.int32),
    rotary(8, 511, 12, 12, 64),
    rotary(4, 1025, 32, 8, 128, own=True),
    rotary(9, 97, 7, 1, 80),
    rebuild(RebuildCase(8, 511, (32,) * 24, 64, others=384)),
    rebuild(RebuildCase(4, 1025, (40,) * 12 + (24,) * 12, 64, bias=False, own=True)),
    rebuild(RebuildCase(9, 97, (8, 128, 72) * 4, 128)),
)
"""Large enough for every multiprocessor of an H200, and odd; run in bf16, each a few tenths of a millisecond."""

_LARGEST = ("right", 1)
"""Mask and batch of the long cases: a checked kernel runs up to a hundred times slower."""

SANITIZED = (
    # Long and short of these two share a binary, as their tiles and flags are the same.
    *(rank_space(Case(f"plain S{seq}", seq, (40, 64), (40, 64), batch=1), True) for seq in (97, 1025)),
    *(rank_space(Case(f"window S{seq}", seq, (40,), (16,), 1, *_LARGEST, 5), True) for seq in (97, 1025)),
    *(one_rank(Case(f"plain S{seq}", seq, (40,) * 3, (40,) * 3)) for seq in (1, 97)),
    one_rank(Case("masked S63", 63, (16,) * 2, (64,) * 2, mask="one empty")),
    one_rank(Case("S1025", 1025, (64,), (8,), 1, *_LARGEST)),
    rank_space(Case("one token", 1, (1,), (1,))),
    rank_space(Case("groups S17", 17, (7, 16), (16, 59), group=2, mask="random")),
    rank_space(Case("mixed ranks S63", 63, (59, 40, 7), (1, 64, 16), mask="one empty")),
    _heads("one token", 1, (1, 1), 32, 2, bias=False),
    _heads("S17 head 80", 17, (7, 59), 80, 2, mask="random"),
    _heads("S63 head 128", 63, (64, 16), 128, 2, mask="one empty"),
    *(_heads(f"S{seq} head 64", seq, (40, 40), 64, 1, mask="right") for seq in (97, 1025)),
    _heads("aligned S97", 97, (32, 32), 64, 2, True),
    ffn(Form(1, 72, 8, 40, "gelu")),
    ffn(Form(129, 72, 40, 8, "silu", bias=False)),
    ffn(Form(129, 97, 59, 264, "relu")),
    ffn(Form(1000, 3072, 240, 240, "gelu_tanh")),
    ffn(Form(1, 72, 8, 8, "relu"), "hopper"),
    ffn(Form(129, 72, 240, 264, "silu"), "hopper"),
    ffn(Form(129, 104, 312, 312, "gelu_tanh", bias=False), "hopper"),
    ffn(Form(1000, 3072, 240, 240), "hopper"),
    ffn(Form(1000, 136, 240, 240), "hopper tall"),
    ffn_block(BlockForm(1, 64, 72, 8, 8, "relu", without=("b1", "b2", "shift", "entry"))),
    ffn_block(BlockForm(129, 128, 72, 40, 104, "silu", without=("entry shift", "entry bias"))),
    ffn_block(BlockForm(333, 768, 520, 240, 240)),
    ffn_block(BlockForm(333, 1088, 136, 240, 256, "gelu_tanh"), tall=True),
    linear(1, 8, 64),
    linear(129, 200, 72, bias=False),
    # More tiles than an H200 has multiprocessors, and fewer steps than stages.
    linear(1000, 4480, 72),
    linear(1000, 1440, 520),
    *(linear(333, 520, 200, tiles=tiles) for tiles in linear_candidates()[1:]),
    ffn(Form(1, 72, 40, 40, "silu", rank_up=8)),
    ffn(Form(129, 97, 7, 59, "gelu", rank_up=16, bias=False)),
    ffn(Form(1000, 520, 96, 240, "gelu_tanh", rank_up=64)),
    ffn(Form(1, 72, 40, 8, "relu", out_width=72)),
    ffn(Form(129, 97, 59, 59, "silu", out_width=100, bias=False)),
    ffn(Form(1000, 520, 240, 128, "gelu", out_width=768)),
    norm(1, 1, "layer"),
    norm(129, 97, "layer"),
    norm(63, 97, "rms"),
    norm(17, 1030, "rms"),
    embedding(1, 1, 1, "layer", 1),
    embedding(3, 17, 97, "rms", 2, torch.int32),
    embedding(2, 63, 1030, "layer"),
    rotary(1, 1, 1, 1, 2),
    rotary(2, 17, 12, 12, 64),
    rotary(3, 63, 4, 1, 80, own=True),
    rotary(1, 97, 3, 5, 256),
    rebuild(RebuildCase(1, 1, (8, 8), 32)),
    rebuild(RebuildCase(2, 17, (40, 40, 24), 64, bias=False, others=8)),
    rebuild(RebuildCase(3, 63, (72, 16), 96, own=True)),
    rebuild(RebuildCase(1, 97, (56,) * 4, 256)),
    rebuild(RebuildCase(1, 97, (104,) * 2, 256), HALF_DTYPES),
    rebuild(RebuildCase(2, 33, (7, 59, 59), 80), (torch.float32,)),
)
"""Small and odd, a handful per kernel: each compiles for seconds. Chunks are left out, as cuBLAS makes them."""


_BITS = {2: torch.int16, 4: torch.int32}


def count_different(
    call: Callable[[], torch.Tensor], first: torch.Tensor, runs: int, before: Callable[[], None] | None = None
) -> int:
    """How many of the runs differ from `first` in any bit; counted where they are made and read once."""
    # As integers: -0 is equal to 0, and NaN to nothing.
    bits = _BITS[first.element_size()]
    different = torch.zeros((), dtype=torch.int64, device=first.device)
    for _ in range(runs):
        if before is not None:
            before()
        different += (call().view(bits) != first.view(bits)).any()
    return int(different)
