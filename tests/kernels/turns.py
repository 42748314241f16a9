"""`python tests/kernels/turns.py RUNS`: every kernel beside other work, to be started several times at once.

Processes take turns on a GPU: one's kernels are stopped anywhere and go on later. What a kernel leaves undefined shows
only then: on one H200 the old states of mbarriers came back over what had been put in their place.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A checkout need not be installed.
    sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from call_lists import ENDURANCE
from kernel_calls import KernelCall, mapped
from side_load import SideLoad, count_different


def different(case: KernelCall, runs: int) -> int:
    """How many runs of one call differ from its first."""
    given = mapped(case.inputs(torch.bfloat16), torch.Tensor.cuda)

    def call() -> torch.Tensor:
        return case.run(given, "triton", None)

    first = call()
    with SideLoad() as load:
        return count_different(call, first, runs, load.step)


if __name__ == "__main__":
    found = {case.id: different(case, int(sys.argv[1])) for case in ENDURANCE if case.runs_on("cuda")}
    sys.exit("; ".join(f"{name}: {count} runs differ" for name, count in found.items() if count) or 0)
