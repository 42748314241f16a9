"""How one kernel of a chain begins while the one before it ends, and what it does for the one after, in Triton.

Programmatic dependent launch (CUDA programming guide): a kernel launched with `launch_pdl=True` may start as soon as
every program of the one before waits or has ended, and sees what was written before it only once it has waited itself.
Weights depend on nothing, and are asked for before.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

LINE_BYTES = tl.constexpr(128)


@triton.jit
def wait(CHAINED: tl.constexpr):
    """Until all that earlier kernels wrote can be read.

    Every program waits, also one that reads nothing of it: the next kernel trusts that the end of this one is the end
    of all before.
    """
    if CHAINED:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()


@triton.jit
def fetch_ahead(ahead, lines, LANES: tl.constexpr, FETCHED: tl.constexpr):
    """Brings this program's share of `lines` lines at `ahead` to the L2 cache: weights of a later instruction, while
    the memory has nothing else to do."""
    if FETCHED:
        PER_LINE: tl.constexpr = LINE_BYTES * 8 // ahead.dtype.element_ty.primitive_bitwidth
        each = tl.cdiv(lines, tl.num_programs(0) * tl.num_programs(1))
        first = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * each
        for start in range(0, each, LANES):
            line = tl.minimum(first + start + tl.arange(0, LANES), lines - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                "=r,l",
                [ahead + line.to(tl.int64) * PER_LINE],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def last_of(arrived, count):
    """Whether this program is the last of `count` to get here; what the others wrote before can then be read with
    `.cg`. The counter is zero again after the last."""
    # Every thread's part has to be written before one thread says so.
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(arrived, 0)
    return last
