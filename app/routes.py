"""What the server answers beside the page: where a job stands, for the bar that listens."""

from __future__ import annotations

import asyncio

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app import services
from app.job_words import standing

_EVERY_SECONDS = 0.25


async def _follow(socket: WebSocket) -> None:
    """Tells of a job by its id, which nobody guesses, whatever is new until it has ended. One that is not known here
    has failed."""
    await socket.accept()
    jobs, job = services.jobs(), socket.path_params["job"]
    told = None
    try:
        while True:
            now = standing(jobs.status(job), len(jobs.partial(job)))
            if now != told:
                await socket.send_json(now)
            if not now["active"]:
                await socket.close()
                return
            told = now
            await asyncio.sleep(_EVERY_SECONDS)
    except (WebSocketDisconnect, RuntimeError):
        # Its page has gone.
        return


ROUTES = (WebSocketRoute("/flashsvd/jobs/{job}", _follow),)
