"""A sweep that two worker processes share: its points from both, one job to look at, one cancel for all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashsvd.curve_set import CurvePart, CurveSet, CurvesRequest, joined
from flashsvd.jobs import JobService
from flashsvd.jobs.pieces import Piece, Pieces
from flashsvd.results import SpectraRequest

KEEPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


def test_pieces_hold_every_point_once_and_enough_for_all_workers() -> None:
    request = CurvesRequest("m", KEEPS, ("svd", "asvd"), ("uniform", "energy"), timed=(1, 8))
    pieces = request.pieces(4)
    assert len(pieces) >= 8 and all(piece.timed is None for piece in pieces)
    points = [
        (method, allocator, keep)
        for piece in pieces
        for method in piece.methods
        for allocator in piece.allocators
        for keep in piece.keeps
    ]
    assert len(points) == 4 * len(KEEPS) == len(set(points))
    assert len(CurvesRequest("m", (0.5,), ("svd",)).pieces(8)) == 1, "a point is in one piece"


def test_progress_is_that_of_all_pieces_and_the_join_is_the_rest() -> None:
    pieces = Pieces.of(["a", "b"])
    pieces.hear(0, 1.0)
    pieces.hear(1, 0.5)
    pieces.hear(1, 0.25)
    pieces.hear(7, 1.0)
    assert pieces.share == pytest.approx(0.6) and not pieces.over
    pieces.members[0].ended = True
    assert pieces.words("Keep 0.5") == "1 of 2 parts done · Keep 0.5"
    pieces.hear(1, 1.0)
    pieces.joining = Piece("all", share=0.5)
    assert pieces.share == pytest.approx(0.9)
    assert Pieces.of(["a"]).words("Keep 0.5") == "Keep 0.5"


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[JobService, list[Any]]]:
    """A service before two workers, and what they say."""
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    from flashsvd.jobs.tasks import TOPIC

    heard: list[Any] = []
    with SubprocessCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:  # type: ignore[arg-type]
        service = JobService(cluster.scheduler_address)
        listener = Client(cluster.scheduler_address, set_as_default=False)
        listener.subscribe_topic(TOPIC, lambda event: heard.append(event[1]))
        deadline = time.monotonic() + 120
        while len(service.machines()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield service, heard
        listener.close()
        service.close()


@pytest.mark.long
def test_two_workers_share_a_sweep_that_is_one_job(
    two: tuple[JobService, list[Any]], scored_folder: Path
) -> None:
    service, heard = two
    request = CurvesRequest(str(scored_folder), KEEPS, ("svd",), timed=(2, 16))
    job = service.submit(request)
    behind = service.submit(SpectraRequest(str(scored_folder)))
    assert service.status(behind).place == 1, "one row in the queue"
    seen, shares = 0, []
    while (status := service.status(job)).active:
        seen = max(seen, len(service.partial(job)))
        shares.append(status.fraction)
        time.sleep(0.005)
    assert status.state == "done", status
    assert shares == sorted(shares) and seen > 0
    parts = service.partial(job)
    assert sorted(part.point.asked_keep for part in parts if isinstance(part, CurvePart)) == list(KEEPS)
    found = service.result(job)
    assert isinstance(found, CurveSet)
    (curve,) = found.curves
    assert [point.asked_keep for point in curve.points] == list(KEEPS)
    assert {point.plan for point in curve.points} <= {cost.plan for cost in found.costs[0].plans}
    assert len({message["worker"] for message in heard if message["job"] == job and "part" in message}) == 2
    assert service.wait(behind, 60).state == "done"
    # The same numbers as from one worker.
    from flashsvd.curves import score_curves

    alone = score_curves(CurvesRequest(str(scored_folder), KEEPS, ("svd",)))
    assert [point.metric for point in alone.curves[0].points] == [point.metric for point in curve.points]
    assert alone.curves[0].dense == curve.dense


@pytest.mark.long
def test_a_cancel_stops_all_workers_and_both_go_on_with_the_next(
    two: tuple[JobService, list[Any]], scored_folder: Path
) -> None:
    service, heard = two
    keeps = tuple(step / 100 for step in range(1, 100))
    job = service.submit(CurvesRequest(str(scored_folder), keeps, ("svd", "asvd")))
    deadline = time.monotonic() + 60
    while not service.partial(job) and time.monotonic() < deadline:
        time.sleep(0.005)
    started = time.monotonic()
    service.cancel(job)
    assert service.wait(job, 20).state == "cancelled"
    assert time.monotonic() - started < 2
    time.sleep(0.3)
    count = len([message for message in heard if message["job"] == job])
    again = service.submit(CurvesRequest(str(scored_folder), KEEPS, ("svd",)))
    assert service.wait(again, 60).state == "done"
    assert len([message for message in heard if message["job"] == job]) == count, "it went on after its end"


@pytest.mark.long
def test_a_piece_that_fails_fails_the_job_in_its_own_words(
    two: tuple[JobService, list[Any]], scored_folder: Path
) -> None:
    service, _ = two
    job = service.submit(CurvesRequest(str(scored_folder), (*KEEPS, 1.5), ("svd",)))
    status = service.wait(job, 60)
    assert status.state == "failed" and "keep must be above 0 and at most 1, got 1.5" in (status.error or "")


def test_joined_curves_have_all_points_in_order(scored_folder: Path) -> None:
    from flashsvd.curves import join_curves, score_curves

    request = CurvesRequest(str(scored_folder), (0.3, 0.5, 0.7), ("svd",), samples=20)
    whole = score_curves(request)
    pieces = [score_curves(piece) for piece in reversed(request.pieces(2))]
    (curve,) = join_curves(request, pieces).curves
    assert curve.points == whole.curves[0].points and curve.dense == whole.curves[0].dense
    assert joined(()) == ()
