"""What instrumented builds are, as lines of JSON, from a process that does not interpret Triton and has no GPU.

`python -m tests.onchip.probe_report compile 90 NAME...` compiles both builds; `capture` notes launches on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
from typing import Any

import torch

from flashsvd.errors import InputError
from flashsvd.gpus import gpu
from flashsvd.kernels.backend import Gpu
from flashsvd.kernels.rank_space import hopper
from flashsvd.kernels.resources import case_source, source_resources
from flashsvd.onchip.compiling import prepare
from flashsvd.onchip.launches import captured, launched
from flashsvd.onchip.probe import probed, timer_reads
from tests.onchip.probe_calls import CALLS, small

_MEMORY = re.compile(r"st\.(?:global|shared)|cp\.async")


def source_of(source: Any) -> Any:
    """The instrumented build of what Triton would compile."""
    aligned: dict[tuple[int, ...], Any] = {(0,): [["tt.divisibility", 16]]}
    moved = [
        {(first + 1, *rest): value for (first, *rest), value in part.items()}
        for part in (source.attrs, source.constants)
    ]
    signature = {"sm_trace": "*i64", **source.signature}
    return type(source)(probed(source.fn), signature, moved[1], aligned | moved[0])


def compiled(sm: int, name: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget

    on = gpu({90: "H200", 80: "A100 80GB"}[sm])
    source, options = case_source(prepare(CALLS[name], on).case, sm)
    probing = source_of(source)
    ptx = triton.compile(probing, target=GPUTarget("cuda", sm, 32), options=options).asm["ptx"]
    body = ptx[ptx.index(".entry") :]
    timers = [match.start() for match in re.finditer("%globaltimer", body)]
    stores = [match.start() for match in re.finditer(r"st\.global(?:\.\w+)*\.b64", body)]
    found = re.search(r"ld\.global|cp\.async", body)
    first = found.start() if found else len(body)
    ahead, behind = body[: timers[-1]], body[timers[-1] :]
    barrier = max(ahead.rfind("bar.sync"), ahead.rfind("barrier.sync"))
    return {
        "name": name,
        "timers": len(timers),
        "smid": body.count("%smid"),
        # Ahead of all that the kernel itself reads, and behind the end.
        "trace_stores": sum(timers[0] < place < first for place in stores)
        + sum(place > timers[-1] for place in stores),
        "stores_after_the_end": len(_MEMORY.findall(behind)),
        "barrier_before_the_end": barrier > 0 and not _MEMORY.search(ahead[barrier:]),
        "plain": dataclasses.asdict(source_resources(name, sm, options, source)),
        "instrumented": dataclasses.asdict(source_resources(name, sm, options, probing)),
    }


def timer() -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(timer_reads, {"out": "*i64", "COUNT": "constexpr"}, {"COUNT": 64}, {})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]
    return {"name": "timer", "timers": ptx.count("%globaltimer")}


def noted(name: str) -> dict[str, Any]:
    """A launch on a CPU, where nothing can start: all of it is noted and nothing is left behind."""
    call = small(CALLS[name])
    prepared = prepare(call, gpu("H200"))
    found = launched(call, prepared, torch.device("cpu"))
    kernel = probed(found.kernel)
    twice = launched(call, prepared, torch.device("cpu"))
    with captured(kernel) as launches:
        found.start(kernel, "trace")
    grid, arguments, options = launches[0]
    return {
        "name": name,
        "grid": found.grid,
        "wanted": prepared.grid,
        "out": list(found.out.shape),
        "first": arguments[0],
        "others": len(arguments) - 1 == len(found.arguments)
        and grid == found.grid
        and options == found.options,
        "left": "run" in vars(found.kernel) or "run" in vars(kernel),
        "repeats": twice.grid == found.grid,
        "parameters": kernel.arg_names[1:] == found.kernel.arg_names,
        "fixed": sorted(kernel.do_not_specialize) == sorted(found.kernel.do_not_specialize),
    }


def restored() -> dict[str, Any]:
    """An error inside leaves nothing behind, either."""
    from flashsvd.kernels.ffn.triton_kernel import ffn_kernel

    try:
        with captured(ffn_kernel):
            raise InputError("inside")
    except InputError:
        pass
    return {"name": "restored", "left": "run" in vars(ffn_kernel)}


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "compile":
        for name in rest[1:]:
            print(json.dumps(compiled(int(rest[0]), name)), flush=True)
        print(json.dumps(timer()))
        return
    # Hopper's launch asks the GPU, which is not here.
    hopper.gpu_of = lambda device: Gpu(9, 0, 132)
    hopper.hopper_takes = lambda *_: True
    for name in CALLS:
        print(json.dumps(noted(name)), flush=True)
    print(json.dumps(restored()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main()
