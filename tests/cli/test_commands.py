"""The command line as a person types it, odd arguments and all."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashsvd.cli import main

Run = Callable[..., tuple[int, str, str]]


def _run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashsvd", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_models_lists_what_needs_no_download() -> None:
    done = _run("models", "--json")
    found = json.loads(done.stdout)
    assert {"name": "bert-base", "kind": "preset", "title": "BERT-base, random weights"} in found["models"]
    assert "bert" in found["families"]
    assert "bert-large" in _run("models").stdout


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process: a new one for each would load torch every time."""

    def in_process(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flashsvd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return in_process


def test_compare_prints_one_object(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    common = ("compare", str(tiny_folder), "--batch", "2", "--seq", "16", "--repeats", "3")
    done = _run(*common, "--ranks", "9,20,11", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [run["engine"] for run in found["runs"]] == ["dense", "lowrank", "flash"]
    assert found["plan"]["layers"][0]["q"] == [9, 9]
    (tmp_path / "plan.json").write_text(json.dumps(found["plan"]))
    code, out, err = run(*common, "--plan", str(tmp_path / "plan.json"), "--engines", "flash")
    assert code == 0, err
    assert "flash" in out and "agrees" in out


def test_a_store_that_fails_costs_a_warning_not_the_numbers(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path / "home"))
    code, out, err = run(
        "compare", str(tiny_folder), "--batch", "1", "--seq", "8", "--repeats", "3", "--json"
    )
    assert code == 0 and len(json.loads(out)["runs"]) == 3
    assert err.startswith("warning: the run was not stored") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "no/such"), "hub cannot be reached"),
        (("compare", "../nowhere"), "unknown model"),
        (("compare", "electra-small", "--keep", "0.5", "--ranks", "1,2,3"), "one of --keep, --ranks"),
        (("compare", "electra-small", "--ranks", "40,240"), "three whole numbers"),
        (("compare", "electra-small", "--ranks", "0,240,240"), "rank for q must be from 1 to 64"),
        (("compare", "electra-small", "--ranks", "65,240,240"), "rank for q must be from 1 to 64"),
        (("compare", "electra-small", "--seq", "513"), "seq must be from 1 to 512"),
        (("compare", "electra-small", "--batch", "0"), "batch must be at least 1"),
        (("compare", "electra-small", "--device", "cuda:99"), "no "),
        (("compare", "electra-small", "--plan", "missing.json"), "cannot read the plan"),
        (("compare", "electra-small", "--rules", "*.x: 3"), "no projection 'x'"),
        (("compare", "electra-small", "--engines", ","), "at least one of"),
        (("curve", "electra-small"), "accuracy does not apply"),
        (("curve", "electra-small", "--keep", "1:0:0.1"), "FIRST up to LAST"),
        (("curve", "electra-small", "--keep", "a:b:c"), "FIRST:LAST:STEP"),
        (("app", "--port", "0"), "port must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str, run: Run) -> None:
    # test_tune_cli.py has one that is a process of its own.
    code, out, err = run(*arguments)
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert out == ""
