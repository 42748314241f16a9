"""Submits work to Dask workers, follows it, and survives what happens to them."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from flashsvd.errors import FlashSVDError, format_bytes
from flashsvd.jobs.cancelling import stop
from flashsvd.jobs.cluster import own_cluster
from flashsvd.jobs.job import Job, status_of
from flashsvd.jobs.kinds import kind_of
from flashsvd.jobs.limits import MEMORY_VARIABLE, OWN_LIMITS, SECONDS_VARIABLE, Limits
from flashsvd.jobs.pieces import Piece, Pieces
from flashsvd.jobs.status import JobStatus, QueuedJob, State
from flashsvd.results import Machine

_LET_GO_SECONDS, _CANCEL_SECONDS = 0.9, 10.0
_RESTART_SECONDS = 60.0
_WATCH_SECONDS = 1.0
_KEPT_JOBS = 200


class JobService:
    """A queue of jobs in front of one worker process, or of a Dask scheduler given by address, whose workers share the
    jobs of a kind that can be split.

    Constructing it returns at once; the worker comes up in the background and jobs wait for it. All methods may be
    called from any thread. A worker that dies or hangs costs the job that ran on it, is started anew, and the job
    says so.
    """

    def __init__(
        self,
        address: str | None = None,
        on_result: Callable[[Any], None] | None = None,
        idle_seconds: float = 0.0,
        limits: Limits = OWN_LIMITS,
    ) -> None:
        """`on_result` is called with every result, before its job counts as done. The worker is started with the
        first job, or after `idle_seconds` without one. limits: of every job; memory is that of the worker's process,
        which only a worker that is started here can be held to.
        """
        self._address = address
        self._limits = limits
        self._typical: dict[str, float] = {}
        self._restarted = -_RESTART_SECONDS
        self._restarting = False
        self._fallen: list[Job] = []
        self._idle_seconds = idle_seconds
        self._wanted = threading.Event()
        self._on_result = on_result
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._deaf: dict[str, Pieces] = {}
        self._machines: tuple[Machine, ...] = ()
        self._client: Any = None
        self._cluster: Any = None
        self._broken: str | None = None
        self._closed = threading.Event()
        self._ready = threading.Event()
        threading.Thread(target=self._start, name="flashsvd-jobs", daemon=True).start()
        threading.Thread(target=self._watch, name="flashsvd-jobs-watch", daemon=True).start()

    # Asked from outside

    def submit(self, request: Any) -> str:
        """Queues a request of any kind (`flashsvd.jobs.kinds`); returns the job's id."""
        job = Job(uuid.uuid4().hex[:12], kind_of(request), request)
        with self._lock:
            self._jobs[job.id] = job
            self._wanted.set()
            self._forget_old()
            if self._broken:
                self._end(job, "failed", error=self._broken)
            elif self._ready.is_set():
                self._send(job)
        return job.id

    def status(self, job_id: str) -> JobStatus:
        """How a job stands. An unknown id is a failed job: the server was restarted since."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return JobStatus(
                    job_id, "", "failed", "", 0.0, 0, "this job is not known here any more: run it again", 0.0
                )
            return status_of(job, self._jobs.values(), self._typical)

    def queue(self) -> list[QueuedJob]:
        """Every job that has not ended, whoever submitted it, in the order in which they run."""
        with self._lock:
            return [
                QueuedJob(
                    job.kind.title,
                    str(getattr(job.request, "model", "")),
                    status_of(job, self._jobs.values(), self._typical),
                )
                for job in self._jobs.values()
                if job.active
            ]

    def result(self, job_id: str) -> Any:
        """What a finished job returned. Raises FlashSVDError where there is nothing."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.state != "done":
                raise FlashSVDError(job.error if job and job.error else "this job has no result")
            return job.result

    def partial(self, job_id: str) -> list[Any]:
        """Parts of the result that are there so far, such as points of a curve."""
        with self._lock:
            job = self._jobs.get(job_id)
            return list(job.parts) if job else []

    def wait(self, job_id: str, seconds: float) -> JobStatus:
        """Blocks until a job has ended or the time is over."""
        deadline = time.monotonic() + seconds
        while (status := self.status(job_id)).active and time.monotonic() < deadline:
            time.sleep(0.02)
        return status

    def cancel(self, job_id: str) -> None:
        """Stops a job: at once while it waits, between two layers while it runs."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            client, waiting = self._client, job.pieces.waiting()
            if job.state == "running":
                job.stage, job.cancel_at = "Stopping", time.monotonic()
            else:
                self._end(job, "cancelled")
                if not waiting:
                    return
        # A job that counts as queued may have begun this very moment: the worker is told either way.
        stop(client, job_id, waiting)

    def machines(self) -> tuple[Machine, ...]:
        """The machine of every worker that has answered."""
        return self._machines

    @property
    def address(self) -> str | None:
        """Of the scheduler that was given, None where the worker is our own."""
        return self._address

    def close(self) -> None:
        """Ends the worker processes that this service started."""
        self._closed.set()
        self._wanted.set()
        with self._lock:
            client, cluster, self._client, self._cluster = self._client, self._cluster, None, None
        for thing in (client, cluster):
            if thing is not None:
                with contextlib.suppress(Exception):
                    thing.close(timeout=5)

    # Behind it

    def _start(self) -> None:
        self._wanted.wait(self._idle_seconds)
        if self._closed.is_set():
            return
        try:
            from distributed import Client

            from flashsvd.jobs.tasks import TOPIC, WorkerState, warm

            logging.getLogger("distributed").setLevel(logging.ERROR)
            target: Any = self._address
            if target is None:
                target = self._cluster = own_cluster(self._limits)
            client = Client(target, timeout=60, set_as_default=False)
            client.register_plugin(WorkerState())
            client.subscribe_topic(TOPIC, self._hear)
            if self._closed.is_set():
                client.close()
                return
            with self._lock:
                self._client = client
                self._ready.set()
                for job in self._jobs.values():
                    if job.active:
                        self._send(job)
            client.wait_for_workers(1, timeout=60)
            workers = sorted(client.nthreads())
            asked = [client.submit(warm, pure=False, workers=[worker]) for worker in workers]
            self._machines = tuple(future.result(timeout=120) for future in asked)
        except Exception as error:
            with self._lock:
                if self._closed.is_set():
                    return
                if not self._machines and not self._ready.is_set():
                    self._broken = f"the worker could not be started: {error}"
                    for job in self._jobs.values():
                        if job.active:
                            self._end(job, "failed", error=self._broken)

    def _send(self, job: Job) -> None:
        from flashsvd.jobs.tasks import run_job

        job.state = "queued"
        workers, split = len(self._machines), job.kind.split
        requests = split(job.request, workers) if split and workers > 1 else [job.request]
        pieces = job.pieces = Pieces.of(requests)
        for number, piece in enumerate(pieces.members):
            if pieces.several:
                self._submit(job, pieces, piece, f"-{number}", run_job, job.id, piece.request, number)
            else:
                self._submit(job, pieces, piece, "", run_job, job.id, piece.request)

    def _submit(
        self, job: Job, pieces: Pieces, piece: Piece, ending: str, task: Callable[..., Any], *arguments: Any
    ) -> None:
        # The same key again would be the task that fell, and its error.
        key = f"job-{job.id}{'-again' if job.sent_again else ''}{ending}"
        piece.future = self._client.submit(task, *arguments, key=key, pure=False)
        piece.future.add_done_callback(lambda future: self._ended(job, pieces, piece, future))

    def _hear(self, event: tuple[float, Any]) -> None:
        _, message = event
        with self._lock:
            job = self._jobs.get(message.get("job", ""))
            if job is None or not job.active:
                return
            if "part" in message:
                job.parts.append(job.kind.part(json.loads(message["part"])))
                return
            if job.started is None:
                job.started = time.monotonic()
            job.state = "running"
            job.pieces.hear(message["piece"], message["share"])
            job.share = max(job.share, job.pieces.share)
            if job.cancel_at is None:
                job.stage = job.pieces.words(message["stage"])

    def _ended(self, job: Job, pieces: Pieces, piece: Piece, future: Any) -> None:
        """One task has ended; with the last of them the job has, and with the first that fails."""
        from flashsvd.jobs.tasks import Failure, join_job

        try:
            result = future.result(timeout=60)
            error: BaseException | None = None
        except BaseException as problem:
            result, error = None, problem
        with self._lock:
            self._deaf.pop(job.id, None)
        if not pieces.several:
            self._finished(job, result, error)
            return
        with self._lock:
            if pieces is not job.pieces:
                # The job ended, or was sent again, without this one.
                return
            piece.ended, piece.result = True, result
            if job.cancel_at is not None:
                if not pieces.over:
                    return
                result, error = Failure("cancelled", cancelled=True), None
            elif error is not None or isinstance(result, Failure):
                if not self._was_elsewhere(job, error):
                    stop(self._client, job.id, pieces.waiting())
            elif piece is not pieces.joining:
                if pieces.over:
                    results, number = [one.result for one in pieces.members], len(pieces.members)
                    joining = pieces.joining = Piece(job.request)
                    self._submit(
                        job, pieces, joining, "-joined", join_job, job.id, job.request, results, number
                    )
                return
        self._finished(job, result, error)

    def _finished(self, job: Job, result: Any, error: BaseException | None) -> None:
        from flashsvd.jobs.tasks import Failure

        warning = None
        with self._lock:
            # What ends well after its cancel is not kept: whoever cancelled it was told that it is over.
            wanted = job.active and job.cancel_at is None
        if wanted and self._on_result and error is None and not isinstance(result, Failure):
            try:
                self._on_result(result)
            except Exception as problem:
                warning = str(problem)
        with self._lock:
            job.warning = warning
            if not job.active:
                return
            if job.over is not None:
                self._end(job, "failed", error=job.over)
            elif job.cancel_at is not None or (isinstance(result, Failure) and result.cancelled):
                self._end(job, "cancelled")
            elif isinstance(result, Failure):
                self._end(job, "failed", error=result.line)
            elif error is None:
                job.result, job.share = result, 1.0
                self._end(job, "done")
            elif self._was_elsewhere(job, error):
                job.sent_again, job.parts = True, []
                if self._restarting:
                    job.state = "queued"
                    self._fallen.append(job)
                else:
                    self._send(job)
            elif type(error).__name__ == "KilledWorker":
                self._end(
                    job,
                    "failed",
                    error=f"the worker process died during this run, most often for want of memory{self._allowed()}; "
                    "it was started again: use a smaller batch, or run again",
                )
            else:
                self._end(job, "failed", error=f"the run failed: {error}")

    def _was_elsewhere(self, job: Job, error: BaseException | None) -> bool:
        """Whether a job fell with a worker that was restarted for the sake of another."""
        killed = type(error).__name__ == "KilledWorker"
        recent = time.monotonic() - self._restarted < _RESTART_SECONDS and job.created < self._restarted
        return killed and not job.sent_again and recent

    def _allowed(self) -> str:
        limit = self._limits.memory_bytes
        return "" if limit is None else f" (it may take {format_bytes(limit)}, by {MEMORY_VARIABLE})"

    def _end(self, job: Job, state: State, error: str | None = None) -> None:
        job.state, job.error, job.ended, job.pieces = state, error, time.monotonic(), Pieces()
        job.stage = {"done": "Done", "cancelled": "Cancelled"}.get(state, "Failed")
        if state == "done" and job.started is not None:
            self._typical[job.kind.name] = job.ended - job.started

    def _watch(self) -> None:
        """Looks after jobs, also where nobody asks for them any more."""
        while not self._closed.wait(_WATCH_SECONDS):
            with self._lock:
                for job in self._jobs.values():
                    self._stop_if_over(job)
                    self._unstick(job)

    def _stop_if_over(self, job: Job) -> None:
        """A job that runs longer than it may is cancelled, and says so."""
        limit = self._limits.seconds
        if (
            job.state != "running"
            or job.started is None
            or job.over
            or time.monotonic() - job.started < limit
        ):
            return
        job.over = (
            f"this run took longer than the {limit:g} s that a run may take: use a smaller input, or set "
            f"{SECONDS_VARIABLE}"
        )
        job.stage, job.cancel_at = "Stopping", time.monotonic()
        stop(self._client, job.id, job.pieces.waiting())

    def _unstick(self, job: Job) -> None:
        """A job that does not hear its cancel, as while a model loads, has ended for whoever waits for it; a worker
        that still has not heard it is started anew."""
        if job.cancel_at is None:
            return
        waited = time.monotonic() - job.cancel_at
        if job.state == "running" and waited > (_CANCEL_SECONDS if job.pieces.several else _LET_GO_SECONDS):
            # Held, as of a task that nobody holds nothing is heard.
            self._deaf[job.id] = job.pieces
            if job.over is not None:
                self._end(job, "failed", error=job.over)
            else:
                self._end(job, "cancelled")
        if job.id in self._deaf and waited > _CANCEL_SECONDS:
            del self._deaf[job.id]
            self._restarted, self._restarting = time.monotonic(), True
            threading.Thread(target=self._restart, daemon=True).start()

    def _restart(self) -> None:
        """Starts the workers anew, then sends the jobs that fell with them: sent before, they would fall again."""
        with contextlib.suppress(Exception):
            self._client.restart_workers(list(self._client.scheduler_info()["workers"]), timeout=30)
        with self._lock:
            self._restarting = False
            fallen, self._fallen = self._fallen, []
            for job in fallen:
                if job.active and not self._closed.is_set():
                    self._send(job)

    def _forget_old(self) -> None:
        for old in list(self._jobs)[:-_KEPT_JOBS]:
            if not self._jobs[old].active:
                del self._jobs[old]
