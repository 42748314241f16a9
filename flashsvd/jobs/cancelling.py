"""Telling workers that a job is not wanted any more."""

from __future__ import annotations

import contextlib
import threading
from typing import Any


def stop(client: Any, job_id: str, waiting: list[Any]) -> None:
    """Takes back what waits and tells the workers. In a thread of its own: a page must not wait for a busy worker."""
    threading.Thread(target=_tell_cancel, args=(client, job_id, waiting), daemon=True).start()


def _tell_cancel(client: Any, job_id: str, waiting: list[Any]) -> None:
    from flashsvd.jobs.tasks import request_cancel

    for future in waiting:
        with contextlib.suppress(Exception):
            future.cancel()
    with contextlib.suppress(Exception):
        client.run(request_cancel, job_id)
