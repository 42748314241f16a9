"""An instrumented build of a Triton or Gluon kernel: every program says where it ran, and from when to when.

The build is made of the shipped kernel's own source (`flashsvd.onchip.rewrite`). Needs Triton, and a process that does
not interpret it.

A row of the trace, int64 [programs, 3], is a program's: its multiprocessor (`%smid`), its start and its end
(`%globaltimer`, nanoseconds). The start is read ahead of all that the kernel does, and stored at once, so that no
register holds it meanwhile. The end is read behind a barrier for all threads of the program, when the slowest of its
warps has come to the kernel's exit and has issued its last store; memory may still be taking that store in. A program
stays on its multiprocessor for some ten nanoseconds more: it stores the end, and leaves.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import linecache
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer, smid

from flashsvd.errors import InputError
from flashsvd.onchip.rewrite import END, START, instrumented


@triton.jit
def row_of(trace):
    """Where the trace holds this program."""
    row = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    return trace + row.to(tl.int64) * 3


@triton.jit
def probe_start(trace):
    """Where and when this program starts."""
    at = row_of(trace)
    tl.store(at + 1, globaltimer())
    tl.store(at, smid().to(tl.int64))


@triton.jit
def probe_end(trace):
    """When all of its warps are at the exit."""
    tl.debug_barrier()
    tl.store(row_of(trace) + 2, globaltimer())


@triton.jit
def timer_reads(out, COUNT: tl.constexpr):
    """The timer, again and again: out int64 [COUNT]."""
    for i in range(COUNT):
        tl.store(out + i, globaltimer())


def probed(kernel: Any) -> Any:
    """The kernel with a trace, int64 [programs, 3] on its device, as its first argument; else it is called alike.

    Raises InputError, in one line, for a kernel that cannot be instrumented.
    """
    from triton.runtime.jit import JITFunction

    if not isinstance(kernel, JITFunction):
        raise InputError(
            "Triton interprets its kernels in this process: unset TRITON_INTERPRET and start again"
        )
    text = instrumented(kernel.src)
    file = f"<probed {kernel.__module__}.{kernel.__name__}>"
    # Triton reads a kernel's source where Python finds it.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = {**kernel.__globals__, **_probes(kernel)}
    # As in the kernels' own modules, annotations are not evaluated: `compile` takes that over from this one.
    exec(compile(text, file, "exec"), scope)
    options = {
        name: [kernel.arg_names[one] if isinstance(one, int) else one for one in getattr(kernel, name)]
        for name in ("do_not_specialize", "do_not_specialize_on_alignment")
    }
    return _decorator(kernel)(**options)(scope[kernel.__name__])


def _decorator(kernel: Any) -> Any:
    if not kernel.is_gluon():
        return triton.jit
    from triton.experimental import gluon

    return gluon.jit


def _probes(kernel: Any) -> dict[str, Any]:
    if not kernel.is_gluon():
        return {START: probe_start, END: probe_end}
    from flashsvd.onchip import probe_gluon

    return {START: probe_gluon.probe_start, END: probe_gluon.probe_end}
