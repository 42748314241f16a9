"""Compiles calls for GPUs that need not be there. Run as a process of its own, which must not interpret Triton.

`python -m flashsvd.onchip.compiling` reads {"calls": [...], "gpus": [...]} and writes a line of JSON per call and GPU
as soon as it is there (`flashsvd.onchip.compiled.Compiled`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.errors import FlashSVDError, InputError, format_bytes
from flashsvd.gpus import Gpu, gpu
from flashsvd.kept import keep, kept
from flashsvd.kernels.attention.compile_case import AttentionCase
from flashsvd.kernels.attention.tiles import kernel_tiles
from flashsvd.kernels.ffn import hopper as ffn_hopper
from flashsvd.kernels.ffn.hopper_case import HopperCase
from flashsvd.kernels.ffn.plan import kernel_takes
from flashsvd.kernels.ffn.tiles import ffn_tiles
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rank_space import hopper as rank_space_hopper
from flashsvd.kernels.rank_space.compile_case import RankSpaceCase
from flashsvd.kernels.rank_space.hopper_case import RankSpaceHopperCase
from flashsvd.kernels.resources import Case, FfnCase, case_source, source_resources
from flashsvd.kernels.step.compile_case import StepKernelCase
from flashsvd.kernels.step.tiles import product_tiles
from flashsvd.kernels.tiles import rank_space_tiles, shared_limit_bytes
from flashsvd.onchip.calls import KERNELS, KernelCall
from flashsvd.onchip.compiled import Compiled

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KEPT = "compiled"
_PERSISTENT = 2
"""Programs of the Hopper rank-space kernel that stay on a multiprocessor."""


@dataclass(frozen=True)
class Prepared:
    """A call as a launch on that GPU would make it."""

    case: Case
    tiles: dict[str, Any]
    grid: tuple[int, ...]


def prepare(call: KernelCall, on: Gpu) -> Prepared:
    """Case, tiles and grid. Raises InputError, in one line, where the kernel does not run such a call there."""
    kind = KERNELS[call.kernel]
    if kind.only_sm and on.sm != kind.only_sm:
        capability = f"{kind.only_sm // 10}.{kind.only_sm % 10}"
        raise InputError(f"made of instructions that only compute capability {capability} has")
    if call.dtype == "bf16" and on.bf16_flops is None:
        raise InputError("has no bf16 instructions: choose fp16")
    return {
        "ffn": _ffn,
        "ffn_v2": _ffn,
        "ffn_hopper": _ffn_hopper,
        "attention": _attention,
        "rank_space": _rank_space,
        "rank_space_hopper": _rank_space_hopper,
        "step": _step,
    }[call.kernel](call, on)


def _ffn(call: KernelCall, on: Gpu) -> Prepared:
    dtype = DTYPES[call.dtype]
    out_width = call.hidden if call.kernel == "ffn_v2" else 0
    tiles = ffn_tiles(
        call.rows,
        call.width,
        call.rank,
        call.rank_out,
        dtype,
        rank_up=call.rank_up,
        out_width=out_width,
        shared_limit_bytes=shared_limit_bytes(on.sm),
        multiprocessors=on.sm_count,
    )
    if not kernel_takes(tiles, call.rank_out, out_width, dtype, wide_loads=call.width % 8 == 0):
        what = "this output rank" if out_width else "these ranks"
        raise InputError(
            f"runs in chunks through cuBLAS: the kernel does not take {what} in {call.dtype} there"
        )
    case = FfnCase(
        "ffn",
        dtype,
        call.rank,
        call.rank_out,
        call.activation,
        width=call.width,
        biased=call.activation != "silu",
        rows=call.rows,
        rank_up=call.rank_up,
        out_width=out_width,
        multiprocessors=on.sm_count,
    )
    grid = math.ceil(call.rows / tiles.block_m) * tiles.out_blocks(call.rank_out)
    return Prepared(case, dataclasses.asdict(tiles), (grid,))


def _ffn_hopper(call: KernelCall, on: Gpu) -> Prepared:
    tiles = ffn_hopper.hopper_tiles(call.rows, call.rank, call.rank_out)
    if tiles is None:
        raise InputError(f"no tiles hold ranks {call.rank} and {call.rank_out}: they are at most 320")
    case = HopperCase("ffn", DTYPES[call.dtype], call.rank, call.rank_out, call.activation, call.rows)
    return Prepared(case, dataclasses.asdict(tiles), (math.ceil(call.rows / tiles.block_m),))


def _attention(call: KernelCall, on: Gpu) -> Prepared:
    dtype = DTYPES[call.dtype]

    def layout(rank: int, heads: int) -> HeadLayout | None:
        return HeadLayout((rank,) * heads, shared=call.shared) if rank else None

    layouts = (
        layout(call.rank, call.heads),
        layout(call.rank, call.kv_heads),
        layout(call.rank_out, call.kv_heads),
    )
    tiles = kernel_tiles(
        call.seq, call.head_dim, layouts, dtype, keys=call.seq, group=call.group, rotary=call.rotary
    )
    case = AttentionCase(
        "attention",
        dtype,
        call.head_dim,
        layouts,
        masked=False,
        biased=not call.rotary,
        group=call.group,
        seq=call.seq,
        causal=call.causal,
        rotary=call.rotary,
    )
    grid = math.ceil(call.seq / tiles.tokens) * (call.heads // tiles.members) * call.batch
    return Prepared(case, {**dataclasses.asdict(tiles), "tokens": tiles.tokens}, (grid,))


def _rank_space(call: KernelCall, on: Gpu) -> Prepared:
    dtype = DTYPES[call.dtype]
    score, value = (HeadLayout((rank,) * call.kv_heads) for rank in (call.rank, call.rank_out))
    tiles = rank_space_tiles(call.seq, score, value, dtype)
    case = RankSpaceCase(
        "rank space",
        dtype,
        score,
        value,
        masked=False,
        kv_group=call.group,
        seq=call.seq,
        causal=call.causal,
    )
    grid = math.ceil(call.seq / tiles.block_m) * call.heads * call.batch
    return Prepared(case, dataclasses.asdict(tiles), (grid,))


def _rank_space_hopper(call: KernelCall, on: Gpu) -> Prepared:
    tiles = rank_space_hopper.hopper_tiles(call.seq, call.rank, call.rank_out)
    if tiles is None:
        raise InputError(f"no tiles hold ranks {call.rank} and {call.rank_out}: they are at most 64")
    case = RankSpaceHopperCase("rank space", DTYPES[call.dtype], call.rank, call.rank_out, seq=call.seq)
    count = math.ceil(call.seq / tiles.block_m) * call.heads * call.batch
    grid = count if tiles.block_m == 64 else min(count, _PERSISTENT * on.sm_count)
    return Prepared(case, dataclasses.asdict(tiles), (grid,))


def _step(call: KernelCall, on: Gpu) -> Prepared:
    dtype = DTYPES[call.dtype]
    case = StepKernelCase(
        "step",
        "wide",
        dtype,
        batch=call.batch,
        hidden=call.hidden,
        width=call.width,
        rank=call.rank,
        multiprocessors=on.sm_count,
    )
    tiles = product_tiles(call.batch, call.width, call.rank, dtype, on.sm // 10, on.sm_count, gated=True)
    return Prepared(case, dataclasses.asdict(tiles), (math.ceil(call.width / tiles.block_n), tiles.splits))


def compile_call(call: KernelCall, on: Gpu) -> Compiled:
    """Tiles and resources; a call that does not run there is a row that says why. Results are kept on disk by what is
    compiled, so that no kernel is compiled twice."""
    import triton

    try:
        prepared = prepare(call, on)
    except FlashSVDError as error:
        return Compiled(call, on.name, {}, (), triton=triton.__version__, refusal=str(error))
    source, options = case_source(prepared.case, on.sm)
    text = f"{source.hash()} {on.sm} {sorted(options.items())} {triton.__version__}"
    key = hashlib.sha256(text.encode()).hexdigest()
    found = kept(_KEPT, key)
    if found is None:
        found = _compiled(source, options, on)
        keep(_KEPT, key, found)
    row = Compiled(call, on.name, prepared.tiles, prepared.grid, triton=triton.__version__, **found)
    refusal = row.refusal or _too_much(row, on)
    return dataclasses.replace(row, refusal=refusal)


def _too_much(row: Compiled, on: Gpu) -> str:
    """Why a compiled kernel does not start there; empty where it does."""
    limit, columns = on.processor.shared_block_bytes, on.processor.tensor_columns
    if row.shared_bytes > limit:
        return f"needs {format_bytes(row.shared_bytes)} of {format_bytes(limit)} shared memory"
    if row.tensor_columns > columns:
        return f"needs {row.tensor_columns} of {columns} columns of tensor memory"
    return ""


def _compiled(source: Any, options: dict[str, int], on: Gpu) -> dict[str, Any]:
    import triton

    try:
        with _quiet():
            row = source_resources("", on.sm, options, source)
    except Exception as error:
        return {
            "refusal": f"Triton {triton.__version__} does not compile it for {on.processor.capability}: {_first(error)}"
        }
    return {
        "warps": row.num_warps,
        "registers": row.registers or 0,
        "shared_bytes": row.shared_bytes,
        "spill_bytes": row.stack_bytes or 0,
        "tensor_columns": row.tensor_columns,
    }


def _first(error: Exception) -> str:
    """The first thing that a compiler has to say, in a line."""
    text = str(error)
    found = re.search(r"error\s*:\s*([^\n]+)", text)
    line = found[1] if found else next(iter(text.strip().splitlines()), type(error).__name__)
    return line.strip()[:120]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Compilers print what went wrong, whole programs of it."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main() -> int:
    """Reads a request from standard input, writes rows to standard output."""
    asked = json.load(sys.stdin)
    out = sys.stdout
    for data in asked["calls"]:
        for name in asked["gpus"]:
            row = compile_call(KernelCall(**data), gpu(name))
            print(json.dumps(row.to_json()), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
