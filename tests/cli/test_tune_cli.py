"""`tune` as a person types it; the timing itself needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flashsvd.cli.commands import application
from flashsvd.errors import FlashSVDError
from flashsvd.kernels import tuning
from flashsvd.kernels.tuned_store import Entry, Store
from flashsvd.tune import Tuned

STORE = Store("NVIDIA H200", "3.6.0")
ENTRIES = [
    Entry("norm", "bfloat16 rows=8", {"block_m": 4, "num_warps": 8}, 10.0, 9.0, "2026-01-01T00:00:00"),
    Entry("ffn hopper", "float16 rows=8", {"rank_in": [256, 64]}, 91.25, 91.25, "2026-01-01T00:00:00"),
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """What a machine with a GPU would open."""
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    monkeypatch.setattr("flashsvd.tune.store_for", lambda device: STORE)
    monkeypatch.setenv("COLUMNS", "160")
    return STORE


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(application, ["tune", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_list_shows_what_is_stored_and_clear_empties_it(store: Store) -> None:
    store.add(ENTRIES)
    table = _run("--list")
    assert "block_m=4 num_warps=8" in table and "10.0%" in table and "rank_in=256,64" in table
    assert "2 entries of" in table and "91.2" in table
    assert [Entry(**row) for row in json.loads(_run("--list", "--json"))["entries"]] == ENTRIES
    assert _run("--clear").startswith("removed") and store.read() == {}
    assert _run("--clear").startswith("nothing is stored") and "0 entries" in _run("--list")


def test_a_run_says_what_it_timed_and_what_it_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (Tuned(ENTRIES[0], True), Tuned(ENTRIES[1], False))
    monkeypatch.setattr("flashsvd.tune.tune_model", lambda request, progress: found)
    printed = _run("bert-base", "--ranks", "40,240,240", "--dtype", "bf16")
    assert "1 timed now, 1 found; 2 entries" in printed and "FLASHSVD_AUTOTUNE=1" in printed


def test_a_model_without_kernels_of_triton_has_nothing_to_tune(store: Store, tiny_folder: Path) -> None:
    printed = _run(
        str(tiny_folder), "--ranks", "9,20,11", "--batch", "2", "--seq", "16", "--device", "cpu", "--json"
    )
    assert json.loads(printed)["entries"] == [] and not store.path.exists()
    assert tuning.VARIABLE not in tuning.os.environ


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of MODEL, --list and --clear"),
        (("--list", "--clear"), "give one of MODEL, --list and --clear"),
        (("bert-base", "--list"), "give one of MODEL, --list and --clear"),
        (("bert-base", "--keep", "0.5", "--ranks", "1,2,3"), "one of --keep, --ranks"),
        (("bert-base", "--ranks", "40,240"), "three whole numbers"),
    ],
)
def test_bad_input_is_an_error_for_people(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(FlashSVDError, match=words):
        CliRunner().invoke(application, ["tune", *arguments], catch_exceptions=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    command = [sys.executable, "-m", "flashsvd", "tune", "bert-base", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tuning needs a CUDA GPU")


def test_the_library_needs_no_command_line() -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('typer', 'rich', 'click')))\n"
        "import flashsvd, flashsvd.tune, flashsvd.kernels.tuning\nassert 'torch' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_tunes_an_encoder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is a process of its own: the second finds what the first has timed."""
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    command = [sys.executable, "-m", "flashsvd", "tune", "bert-base", "--ranks", "40,240,240"]
    command += ["--batch", "8", "--seq", "128", "--dtype", "bf16", "--device", "cuda", "--json"]
    runs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    assert runs[0] == runs[1] and {entry["kernel"] for entry in runs[0]["entries"]} >= {"norm"}
