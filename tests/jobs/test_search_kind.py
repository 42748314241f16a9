"""A search for ranks as the worker runs it."""

from __future__ import annotations

import pytest

from flashsvd.jobs.kinds import kind_of
from flashsvd.jobs.kinds.search import FoundPlan, SearchRequest
from flashsvd.session import Session


@pytest.mark.slow
def test_a_search_gives_a_plan_that_fits(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    request = SearchRequest("stdlib-bert", "parameters", 3_500_000, allocator="uniform")
    kind = kind_of(request)
    found = kind.run(request, Session(), lambda stage, share: None, lambda part: None)
    assert kind.name == "search" and not kind.keep
    assert isinstance(found, FoundPlan)
    assert 3_300_000 < found.got <= 3_500_000 and found.plan.keep < 0.6
