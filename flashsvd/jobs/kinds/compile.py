"""A kernel compiled for GPUs that need not be there; rows come one by one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.request import CompiledCalls, CompileRequest
from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: CompileRequest, session: Session, progress: Progress, emit: Emit) -> CompiledCalls:
    from flashsvd.onchip.process import compile_calls

    rows: list[Compiled] = []
    total = request.count
    progress("Starting the compiler", 0.0)
    for calls, names in request.parts:
        with contextlib.closing(compile_calls(calls, names)) as found:
            for row in found:
                rows.append(row)
                emit(row.to_json())
                progress(f"Compiled {len(rows)} of {total}, {row.gpu}", len(rows) / total)
    return CompiledCalls(tuple(rows))


def _part(data: Any) -> Compiled:
    return Compiled.from_json(data)


KIND = Kind("compile", "Compiling", CompileRequest, _run, _part)
