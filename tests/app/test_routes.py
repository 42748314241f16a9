"""What the server answers beside the page."""

from __future__ import annotations

import asyncio
from typing import Any

from app.routes import ROUTES
from flashsvd.results import CompareRequest, PlanChoice
from tests.app.conftest import Desk


class Socket:
    """A browser's end: every message, and what happens after each."""

    def __init__(self, job: str, then: dict[int, Any]) -> None:
        self.path_params = {"job": job}
        self.heard: list[dict[str, Any]] = []
        self.closed = False
        self._then = then

    async def accept(self) -> None:
        """Always."""

    async def close(self) -> None:
        self.closed = True

    async def send_json(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        self._then.get(len(self.heard), lambda: None)()


def follow(socket: Socket) -> None:
    (route,) = ROUTES
    asyncio.run(asyncio.wait_for(route.endpoint(socket), 10))


def test_a_job_is_told_of_until_it_has_ended(desk: Desk) -> None:
    job = desk.jobs.submit(CompareRequest("stdlib-bert", PlanChoice(keep=0.5)))
    socket = Socket(job, {1: lambda: desk.jobs.cancel(job)})
    follow(socket)
    stage = "Timing the dense model"
    first = {"id": job, "stage": stage, "time": "3 s", "share": 0.25, "parts": 0, "active": True}
    assert socket.heard[0] == first
    assert [now["active"] for now in socket.heard] == [True, False] and socket.closed


def test_nothing_is_told_twice_nor_to_a_page_that_has_gone(desk: Desk) -> None:
    job = desk.jobs.submit(CompareRequest("stdlib-bert", PlanChoice(keep=0.5)))

    def gone() -> None:
        raise RuntimeError("the socket is closed")

    socket = Socket(job, {1: lambda: desk.jobs.points.append(None), 2: gone})  # type: ignore[arg-type]
    follow(socket)
    assert [now["parts"] for now in socket.heard] == [0, 1] and not socket.closed
