"""Real worker processes: a job's whole life, and everything that can end it early."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flashsvd.errors import FlashSVDError
from flashsvd.jobs import JobService
from flashsvd.jobs.limits import SECONDS_VARIABLE, Limits
from flashsvd.results import (
    CompareRequest,
    Comparison,
    Machine,
    PlanChoice,
    SpectraRequest,
    SpectraSummary,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service() -> Iterator[JobService]:
    service = JobService()
    yield service
    service.close()


@pytest.fixture
def request_(tiny_folder: Path) -> CompareRequest:
    return CompareRequest(str(tiny_folder), PlanChoice(keep=0.5), batch=2, seq=16, repeats=3)


@pytest.fixture
def long_request(request_: CompareRequest) -> CompareRequest:
    return replace(request_, model="bert-base", batch=4, seq=128, repeats=500)


def _wait_for_start(service: JobService, job: str) -> None:
    deadline = time.monotonic() + 60
    while service.status(job).state in ("starting", "queued") and time.monotonic() < deadline:
        time.sleep(0.02)


def _machines(service: JobService) -> tuple[Machine, ...]:
    """What the workers answer, which may come after a short job's result."""
    deadline = time.monotonic() + 60
    while not service.machines() and time.monotonic() < deadline:
        time.sleep(0.02)
    return service.machines()


def test_a_job_runs_reports_and_returns(service: JobService, request_: CompareRequest) -> None:
    job = service.submit(request_)
    fractions = []
    while (status := service.status(job)).active:
        fractions.append(status.fraction)
        time.sleep(0.01)
    assert status.state == "done", status
    assert status.fraction == 1.0 and fractions == sorted(fractions)
    result = service.result(job)
    assert isinstance(result, Comparison) and len(result.runs) == 3
    assert not result.runs[0].timeline.empty
    spectra = service.submit(SpectraRequest(request_.model))
    assert service.wait(spectra, 60).state == "done"
    summary = service.result(spectra)
    assert isinstance(summary, SpectraSummary) and len(summary.sigmas) == 18
    (machine,) = _machines(service)
    assert machine.cores >= 1


def test_what_is_there_before_the_scores_comes_while_the_job_runs(
    service: JobService, scored_folder: Path
) -> None:
    request = CompareRequest(str(scored_folder), PlanChoice(keep=0.5), batch=2, seq=16, repeats=3)
    job = service.submit(request)
    assert service.wait(job, 60).state == "done"
    result, parts = service.result(job), service.partial(job)
    assert [[run.metric is not None for run in part.runs] for part in parts] == [
        [False] * 3,
        [True, False, False],
    ]
    for part in parts:
        assert part.plan == result.plan
        assert [run.timeline["bytes"].tolist() for run in part.runs] == [
            run.timeline["bytes"].tolist() for run in result.runs
        ]


def test_the_queue_lists_what_has_not_ended_in_order(
    service: JobService, long_request: CompareRequest, request_: CompareRequest
) -> None:
    first, second = service.submit(long_request), service.submit(request_)
    queue = service.queue()
    assert [job.status.id for job in queue] == [first, second]
    assert [job.status.place for job in queue] == [0, 1]
    assert [(job.title, job.model) for job in queue] == [
        ("Live run", "bert-base"),
        ("Live run", request_.model),
    ]
    service.cancel(first)
    assert service.wait(second, 120).state == "done"
    service.wait(first, 30)
    assert service.queue() == []


def test_a_cancel_is_heard_and_the_next_job_runs(
    service: JobService, long_request: CompareRequest, request_: CompareRequest
) -> None:
    running, waiting, last = (
        service.submit(long_request),
        service.submit(long_request),
        service.submit(request_),
    )
    _wait_for_start(service, running)
    assert service.status(waiting).place >= 1
    service.cancel(waiting)
    assert service.status(waiting).state == "cancelled"
    started = time.monotonic()
    service.cancel(running)
    assert service.wait(running, 15).state == "cancelled"
    assert time.monotonic() - started < 10
    assert service.wait(last, 60).state == "done"
    with pytest.raises(FlashSVDError):
        service.result(running)


def _worker_process() -> psutil.Process:
    """The one that holds the models, of this process's youngest service."""
    found = [
        child
        for child in psutil.Process().children(recursive=True)
        if any("spawn_main" in word for word in child.cmdline())
    ]
    return max(found, key=lambda child: child.create_time())


def _cancelled_on_a_worker_that_does_not_hear(service: JobService, request: CompareRequest) -> psutil.Process:
    """The worker, suspended, as one that loads a large model; the job has ended for whoever waits for it."""
    running = service.submit(request)
    _wait_for_start(service, running)
    worker = _worker_process()
    worker.suspend()
    service.cancel(running)
    ended = service.wait(running, 2.0)
    if ended.state != "cancelled":
        worker.resume()
    assert ended.state == "cancelled"
    return worker


def test_who_cancels_does_not_wait_for_a_worker_that_does_not_hear(
    service: JobService, long_request: CompareRequest, request_: CompareRequest
) -> None:
    worker = _cancelled_on_a_worker_that_does_not_hear(service, long_request)
    last = service.submit(request_)
    worker.resume()
    assert service.wait(last, 60).state == "done"
    # It heard it in time, and keeps its models.
    assert _worker_process().pid == worker.pid


def test_what_ends_well_after_its_cancel_is_not_kept(request_: CompareRequest) -> None:
    kept: list[object] = []
    service = JobService(on_result=kept.append)
    try:
        job = service.submit(request_)
        assert service.wait(job, 60).state == "done" and len(kept) == 1
        late = service.submit(replace(request_, repeats=4))
        asked = service._jobs[late]
        _wait_for_start(service, late)
        service.cancel(late)
        service._finished(asked, service.result(job), None)
        assert service.status(late).state == "cancelled" and len(kept) == 1
    finally:
        service.close()


@pytest.mark.long
def test_a_worker_that_never_hears_is_started_anew_and_the_next_job_runs(
    service: JobService, long_request: CompareRequest, request_: CompareRequest
) -> None:
    worker = _cancelled_on_a_worker_that_does_not_hear(service, long_request)
    status = service.wait(service.submit(request_), 120)
    assert status.state == "done", status
    assert not worker.is_running() and _worker_process().pid != worker.pid


def test_a_failed_job_is_one_line_and_the_worker_goes_on(
    service: JobService, request_: CompareRequest
) -> None:
    jobs = {
        "hub cannot be reached": replace(request_, model="no/such"),
        "GiB is free": replace(request_, batch=10**9),
        "seq must be": replace(request_, seq=1000),
    }
    ids = {service.submit(request): words for words, request in jobs.items()}
    for job, words in ids.items():
        status = service.wait(job, 60)
        assert status.state == "failed" and status.error
        assert words in status.error and "\n" not in status.error
    assert service.wait(service.submit(request_), 60).state == "done"


def test_a_killed_worker_costs_its_job_and_comes_back(
    service: JobService, long_request: CompareRequest, request_: CompareRequest
) -> None:
    job = service.submit(long_request)
    _wait_for_start(service, job)
    _worker_process().kill()
    status = service.wait(job, 60)
    assert status.state == "failed" and "worker process died" in (status.error or "")
    assert service.wait(service.submit(request_), 90).state == "done"


def test_a_job_ends_at_its_limit_of_time(long_request: CompareRequest, request_: CompareRequest) -> None:
    service = JobService(limits=Limits(seconds=3.0))
    try:
        status = service.wait(service.submit(long_request), 90)
        assert status.state == "failed" and "3 s that a run may take" in (status.error or "")
        assert SECONDS_VARIABLE in (status.error or "") and status.seconds < 20
        assert service.wait(service.submit(SpectraRequest(request_.model)), 60).state == "done"
    finally:
        service.close()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="of what a process takes as Linux counts it")
def test_a_job_ends_at_its_limit_of_memory(long_request: CompareRequest, request_: CompareRequest) -> None:
    service = JobService(limits=Limits(memory_bytes=900 * 2**20))
    try:
        status = service.wait(service.submit(replace(long_request, model="bert-large")), 120)
        assert status.state == "failed" and "it may take 900 MiB" in (status.error or "")
        assert service.wait(service.submit(SpectraRequest(request_.model)), 90).state == "done"
    finally:
        service.close()


def test_what_is_left_is_told_once_a_job_of_the_kind_has_run(
    service: JobService, request_: CompareRequest, long_request: CompareRequest
) -> None:
    assert service.wait(service.submit(request_), 60).left is None
    running, waiting = service.submit(long_request), service.submit(request_)
    _wait_for_start(service, running)
    told = service.status(waiting).left
    assert told is not None and told > 0
    service.cancel(running)
    assert service.wait(waiting, 60).state == "done"


def test_jobs_run_on_a_scheduler_that_is_named(request_: CompareRequest) -> None:
    from distributed.deploy.subprocess import SubprocessCluster

    with SubprocessCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:  # type: ignore[arg-type]
        service = JobService(cluster.scheduler_address)
        try:
            job = service.submit(SpectraRequest(request_.model))
            assert service.wait(job, 90).state == "done"
            assert service.address == cluster.scheduler_address and len(_machines(service)) == 1
        finally:
            service.close()


def test_an_unknown_job_says_so(service: JobService) -> None:
    assert "not known" in (service.status("gone").error or "")
    service.cancel("gone")


def test_the_process_that_asks_never_loads_torch(request_: CompareRequest) -> None:
    code = f"""
import sys
from flashsvd.jobs import JobService
from flashsvd.jobs.limits import SECONDS_VARIABLE, Limits
from flashsvd.results import SpectraRequest
service = JobService()
job = service.submit(SpectraRequest({request_.model!r}))
assert service.wait(job, 60).state == "done"
service.result(job)
service.close()
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_result_is_handed_over_before_the_job_is_done(request_: CompareRequest) -> None:
    handed: list[object] = []

    def full(result: object) -> None:
        handed.append(result)
        raise OSError("the disk is full")

    service = JobService(on_result=full)
    try:
        status = service.wait(service.submit(SpectraRequest(request_.model)), 60)
    finally:
        service.close()
    assert status.state == "done" and status.warning == "the disk is full"
    assert len(handed) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_worker_keeps_the_memory_that_it_frees() -> None:
    """Dask's variable asks for the opposite, and then activations cost half a run in page faults."""
    code = """
import resource
from flashsvd.jobs.tasks import _keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        bytearray(4 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
_keep_freed_memory()
faults()
print(given_back, faults())
"""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 10_000 and kept < 1000
