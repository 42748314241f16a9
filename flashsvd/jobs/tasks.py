"""What a worker process does. It keeps its models between jobs, reports progress, and hears a cancel."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from flashsvd.errors import Cancelled, FlashSVDError
from flashsvd.jobs.kind import Emit
from flashsvd.jobs.kinds import kind_of
from flashsvd.progress import Progress
from flashsvd.results import Machine
from flashsvd.threads import WORKER_VARIABLE

TOPIC = "flashsvd-jobs"
PLUGIN = "flashsvd"
_REPORT_EVERY_SECONDS = 0.1


class WorkerState(WorkerPlugin):
    """The models that a worker keeps, and the jobs that were cancelled."""

    name = PLUGIN

    def setup(self, worker: Worker) -> None:
        self.cancelled: set[str] = set()
        self.session: Any = None


def state_of(worker: Worker) -> WorkerState:
    """The state that rides on a worker."""
    plugin = worker.plugins[PLUGIN]
    assert isinstance(plugin, WorkerState)
    return plugin


def request_cancel(job: str, dask_worker: Worker) -> None:
    """Runs beside the job, on the worker's event loop."""
    state_of(dask_worker).cancelled.add(job)


def warm() -> Machine:
    """Loads what every job needs, and says what machine this is."""
    import torch

    # Two seconds, which transformers else takes with the first model.
    importlib.import_module("transformers.modeling_utils")

    from flashsvd.measure.machine import describe_machine
    from flashsvd.models.load import pick_device
    from flashsvd.session import Session

    _use_all_cores(torch)
    _keep_freed_memory()
    state = state_of(get_worker())
    state.session = state.session or Session()
    return describe_machine(pick_device("auto"))


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result, in one line. Returned, not raised: a worker logs what is raised."""

    line: str
    cancelled: bool = False


def run_job(job: str, request: Any, piece: int | None = None) -> Any:
    """Runs one request of any kind (`flashsvd.jobs.kinds`); returns its result or a Failure. piece: which one of a
    job's several this is."""
    return _run(job, piece, lambda *at: kind_of(request).run(request, *at))


def join_job(job: str, request: Any, results: Sequence[Any], piece: int) -> Any:
    """Makes the whole result of the results of a request's pieces; the last piece of its job."""

    def run(session: Any, progress: Progress, emit: Emit) -> Any:
        join = kind_of(request).join
        assert join is not None
        return join(request, results, session, progress, emit)

    return _run(job, piece, run)


def _run(job: str, piece: int | None, do: Callable[[Any, Progress, Emit], Any]) -> Any:
    warm()
    worker = get_worker()
    state = state_of(worker)

    def emit(part: Any) -> None:
        # As text: Dask's own way would make lists tuples.
        worker.log_event(TOPIC, {"job": job, "part": json.dumps(part)})

    try:
        return do(state.session, _reporter(worker, state, job, piece), emit)
    except Cancelled:
        return Failure("cancelled", cancelled=True)
    except FlashSVDError as error:
        return Failure(str(error))
    except Exception as error:
        logging.getLogger(__name__).exception("job %s", job)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Failure(f"the run failed: {first}")
    finally:
        # Another piece of the job may come to this worker yet.
        if piece is None:
            state.cancelled.discard(job)


def _reporter(worker: Worker, state: WorkerState, job: str, piece: int | None) -> Progress:
    last = ("", 0.0)

    def report(stage: str, share: float) -> None:
        nonlocal last
        if job in state.cancelled:
            raise Cancelled("cancelled")
        now = time.perf_counter()
        if stage != last[0] or now - last[1] > _REPORT_EVERY_SECONDS:
            last = (stage, now)
            worker.log_event(TOPIC, {"job": job, "piece": piece or 0, "stage": stage, "share": float(share)})

    return report


def _use_all_cores(torch: Any) -> None:
    """Dask starts its workers with one thread for arithmetic; ours runs one job at a time and may use all cores, or as
    many as OMP_NUM_THREADS says to the process that asks.
    """
    said = os.environ.get(WORKER_VARIABLE, "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(int(said) if said.isdecimal() and int(said) else cores or 1)


def _keep_freed_memory() -> None:
    """Dask has glibc give back whatever is freed, and each activation then waits for new pages, for up to half as long
    again as the run takes without that. These are the thresholds that glibc comes to by itself.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim, mmap = -1, -3
    mallopt(mmap, 32 << 20)
    mallopt(trim, 64 << 20)
