"""Runs every kernel once at odd sizes and checks it, for NVIDIA's compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python tests/kernels/sanitize.py [kernel ...]
    compute-sanitizer --tool racecheck python tests/kernels/sanitize.py [kernel ...]

Without a name all kernels run. Exits with 1 where a result is off the gate or something outside an output was written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Before torch is imported: each tensor is then an allocation of its own, whose end memcheck sees.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    # A checkout need not be installed.
    sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from call_lists import SANITIZED
from kernel_calls import KernelCall, floats_mapped, mapped
from kernel_cases import GPU_DTYPES

from flashsvd.kernels.gate import check

KERNELS = tuple(dict.fromkeys(call.kernel for call in SANITIZED))


def verdict(call: KernelCall, dtype: torch.dtype, device: str, backend: str) -> str | None:
    """What is wrong with one call whose inputs lie inside NaN, None if nothing is.

    What it is compared with is made on the CPU, so that the sanitizer has little to watch beside the kernel at hand.
    """
    given = call.inputs(dtype)
    exact, plain = call.expected(given)
    fenced = floats_mapped(mapped(given, lambda tensor: tensor.to(device)), call.fence)
    target = None
    if call.takes_out:
        target = call.fence(torch.full(exact.shape, torch.nan, dtype=dtype, device=device))
    out = call.run(fenced, backend, target)
    result = check(out, exact, plain)
    if not result.passed:
        return f"relative error {result.error:.3g} is above the limit {result.limit:.3g}"
    if target is not None and target._base is not None and target._base.isfinite().sum() != target.numel():
        return "wrote outside its output"
    return None


def run(kernels: Sequence[str], device: str, backend: str, dtypes: Sequence[torch.dtype] = GPU_DTYPES) -> int:
    """Prints a line per call of the kernels named, in those of its dtypes; returns how many went wrong."""
    wrong = 0
    for call in SANITIZED:
        if call.kernel not in kernels:
            continue
        for dtype in (one for one in call.dtypes if one in dtypes):
            if device != "cpu" and not call.runs_on(device):
                said: str | None = "skipped, needs compute capability 9"
            else:
                said = verdict(call, dtype, device, backend)
                wrong += said is not None
            print(f"{call.id} {str(dtype).removeprefix('torch.')}: {said or 'ok'}", flush=True)
    return wrong


def main(arguments: Sequence[str]) -> int:
    unknown = [name for name in arguments if name not in KERNELS]
    if unknown:
        print(f"kernels are {', '.join(KERNELS)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("needs a CUDA device; on a CPU the same calls are in pytest", file=sys.stderr)
        return 2
    return 1 if run(arguments or KERNELS, "cuda", "triton") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
