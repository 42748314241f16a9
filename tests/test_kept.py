"""What took long is kept whole, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flashsvd.kept import keep, kept


def test_the_cache_keeps_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    assert kept("some", "a") is None
    data = {"registers": 1, "text": "x" * 5000}
    threads = [threading.Thread(target=keep, args=("some", "a", data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept("some", "a") == data and kept("other", "a") is None
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["a.json"]
    (tmp_path / "some" / "a.json").write_text("{", encoding="utf-8")
    assert kept("some", "a") is None


def test_a_home_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("FLASHSVD_HOME", str(blocked))
    keep("some", "a", {})
    assert kept("some", "a") is None
