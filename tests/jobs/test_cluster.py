"""The worker process that a service starts for itself."""

from __future__ import annotations

import os

import pytest
from distributed import Client

from flashsvd.jobs.cluster import own_cluster
from flashsvd.jobs.limits import OWN_LIMITS


def test_dask_watches_itself_less_but_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> dict[str, object]:
        import dask

        names = ("worker.profile.enabled", "admin.tick.interval", "admin.tick.cycle")
        return {name: dask.config.get(f"distributed.{name}") for name in names}

    monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__TICK__CYCLE", "7s")
    before = dict(os.environ)
    with own_cluster(OWN_LIMITS) as cluster, Client(cluster, set_as_default=False) as client:
        assert dict(os.environ) == before
        client.wait_for_workers(1, timeout=60)
        (worker,) = client.run(asked).values()
        told = {"worker.profile.enabled": False, "admin.tick.interval": "500ms", "admin.tick.cycle": "7s"}
        assert worker == client.run_on_scheduler(asked) == told
