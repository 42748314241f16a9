"""The worker process that a service starts for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flashsvd.jobs.limits import Limits
from flashsvd.threads import ARITHMETIC_VARIABLE, SPIN_COUNT, SPIN_VARIABLE, WORKER_VARIABLE

_NO_SPILLING = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
"""Up to its limit of memory a worker is left alone: it holds models, which cannot be written out and read again."""

_QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__TICK__CYCLE": "10s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START": "False",
}
"""What Dask does of its own for clusters of hundreds: scheduler, nanny and worker took 29 % of a core with no job to
run, and 10 % without."""


def own_cluster(limits: Limits) -> Any:
    """A scheduler and one worker, each a process of its own."""
    from distributed.deploy.subprocess import SubprocessCluster

    with _environment(_QUIET):
        # One failure is enough: a job that killed its worker is not given a second one.
        return SubprocessCluster(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=None,  # type: ignore[arg-type]
            scheduler_kwargs={"allowed_failures": 0, "dashboard": False},
            worker_kwargs={
                "memory_limit": limits.memory_bytes or 0,
                "dashboard": False,
                "env": {
                    **_NO_SPILLING,
                    SPIN_VARIABLE: os.environ.get(SPIN_VARIABLE, SPIN_COUNT),
                    WORKER_VARIABLE: os.environ.get(ARITHMETIC_VARIABLE, ""),
                },
            },
        )


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """The environment with these settings, where a person has not set them; processes started meanwhile keep it."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
