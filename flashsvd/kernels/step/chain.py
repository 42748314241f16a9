"""How one kernel of a chain begins while the one before it ends, in Triton.

Programmatic dependent launch (CUDA programming guide): a kernel launched with `launch_pdl=True` may start as soon as
every program of the one before waits or has ended, and sees what was written before it only once it has waited itself.
Weights depend on nothing, and are asked for before.

A step of Llama-2-7B shapes at ranks 1024 and 1492, one sequence after 512 tokens, bf16, H200, took 2.61 ms that way
and 2.94 without. Tried beside it: one kernel that stays for the whole step, its programs waiting for one another by a
counter, took 3.08, as it has the registers of its largest part everywhere; bringing the next kernel's weights to the L2
cache, 2 to 16 MiB of them, gained nothing (2.62 to 2.71 for 2.62; from attention or the products after it, by bulk
prefetches, when a step took 2.22: 2.22 to 2.31). Words that carry the turn that they were written in,
which a kernel polls instead of waiting for the end of the one before: 10.4 us for 6.7 of two products of 4096 x 1024;
heads and their attention that way in one kernel, 27.5 us for 15.8.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def wait(CHAINED: tl.constexpr, some):
    """Until all that earlier kernels wrote can be read.

    Every program waits, also one that reads nothing of it: the next kernel trusts that the end of this one is the end
    of all before.

    some: a whole number of the launch, above zero. The compiler does not know that, and the branch keeps it from moving
    what is done with weights, which has to wait for them, before the wait for the kernels: 3.0 us for 3.6 of a product
    of 4096 x 1024. That programs of the next kernel may come at once pays even where they take the room of this one's:
    after the products, 17.8 us for 16.6 of two of 11008 x 1496.
    """
    if CHAINED:
        tl_cuda.gdc_launch_dependents()
        if some > 0:
            tl_cuda.gdc_wait()


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
