"""A search for ranks as the worker runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashsvd.jobs.kinds import kind_of
from flashsvd.jobs.kinds.search import FoundPlan, SearchRequest
from flashsvd.session import Session


@pytest.mark.slow
def test_a_search_gives_a_plan_that_fits(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    request = SearchRequest(str(tiny_folder), "parameters", 90_000, allocator="uniform")
    kind = kind_of(request)
    found = kind.run(request, Session(), lambda stage, share: None, lambda part: None)
    assert kind.name == "search" and not kind.keep
    assert isinstance(found, FoundPlan)
    assert 80_000 < found.got <= 90_000 and found.plan.keep < 0.8
