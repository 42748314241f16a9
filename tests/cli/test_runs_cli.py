"""`runs`: the kept runs on a terminal and in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashsvd.cli.commands import application
from flashsvd.errors import InputError
from flashsvd.runs.importing import read_runs
from flashsvd.store import RunStore
from tests.app import fakes


@pytest.fixture(autouse=True)
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path / "home"))
    store = RunStore()
    store.add(fakes.comparison(0.5), "[bold]first")
    store.add(fakes.comparison(0.3, flash_ms=70.0))
    store.add(fakes.curve())
    return store


def say(*words: str) -> str:
    result = CliRunner().invoke(application, ["runs", *words], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_are_listed_and_found() -> None:
    words = say()
    assert "[bold]first" in words and "10 points" in words and "88.4 % accuracy" in words
    found = json.loads(say("--json", "--sort", "fastest"))
    assert [row["id"] for row in found] == [2, 1, 3]
    assert [row["id"] for row in json.loads(say("--json", "--find", "bold"))] == [1]
    assert "no run" in say("--find", "nothing of the kind")


def test_files_out_and_in(tmp_path: Path, three: RunStore) -> None:
    for ending in ("csv", "parquet", "json"):
        assert "3 runs" in say("--out", str(tmp_path / f"runs.{ending}"))
    assert "1 runs" in say("1", "--out", str(tmp_path / "run.html"))
    assert len(read_runs((tmp_path / "runs.json").read_bytes())) == 3
    three.delete((1, 2, 3))
    assert len(json.loads(say("--take", str(tmp_path / "runs.json"), "--json"))) == 3
    assert len(three.rows()) == 3


@pytest.mark.parametrize(
    "words",
    [("9",), ("--out", "runs.txt"), ("--sort", "luck"), ("--take", "no-such-file"), ("--out", "/no/x.csv")],
)
def test_what_cannot_be_done_is_one_line(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        say(*words)
    assert "\n" not in str(caught.value)
