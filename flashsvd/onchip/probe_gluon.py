"""The probes of `flashsvd.onchip.probe` in Gluon. In a kernel whose warps are specialised they belong to the default
partition, which waits for the others where they are joined."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Triton 3.6's name of what later versions call barrier.
_sync = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _timer():
    return gl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l", [], dtype=gl.int64, is_pure=False, pack=1
    )


@gluon.jit
def _row_of(trace):
    row = gl.program_id(0) + gl.num_programs(0) * (gl.program_id(1) + gl.num_programs(1) * gl.program_id(2))
    return trace + row.to(gl.int64) * 3


@gluon.jit
def probe_start(trace):
    """Where and when this program starts."""
    at = _row_of(trace)
    gl.store(at + 1, _timer())
    place = gl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r", [], dtype=gl.int32, is_pure=True, pack=1)
    gl.store(at, place.to(gl.int64))


@gluon.jit
def probe_end(trace):
    """When all of its warps are at the exit."""
    _sync()
    gl.store(_row_of(trace) + 2, _timer())
