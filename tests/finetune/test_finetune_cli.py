"""`finetune` as a person types it."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from flashsvd.cli.finetune import finetune
from flashsvd.errors import Cancelled, FlashSVDError, InputError
from flashsvd.finetune import run
from flashsvd.finetune.request import FinetuneReport, FinetuneRequest

APPLICATION = typer.Typer(pretty_exceptions_enable=False)
APPLICATION.command()(finetune)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(APPLICATION, list(arguments), catch_exceptions=False)


def test_a_cut_is_trained_and_told_in_a_few_lines(trained: FinetuneReport, tmp_path: Path) -> None:
    model, task = trained.request.out, trained.request.task
    options = ("--task", task, "--keep", "0.3", "--steps", "4", "--lr", "1e-3", "--device", "cpu")
    done = _run(model, str(tmp_path / "out"), *options)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step      0  accuracy 0.") and lines[-1].startswith(f"{tmp_path / 'out'}: ")
    assert any(line.startswith("dense        accuracy") for line in lines)
    assert done.stderr == ""
    done = _run(model, str(tmp_path / "out"), *options, "--force", "--json", "--whole")
    data = json.loads(done.stdout)
    assert data["mode"] == "factors" and data["request"]["choice"]["keep"] == 0.3
    assert {"machine", "before", "after", "dense", "recovered", "curve", "losses", "seconds"} <= data.keys()
    assert not data["request"]["per_head"]


def test_the_options_reach_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[FinetuneRequest] = []

    def finetune(request: FinetuneRequest, **_: Any) -> FinetuneReport:
        seen.append(request)
        raise Cancelled("stopped after checkpoint 5 of 12 steps: repeat the command with --resume to go on")

    monkeypatch.setattr(run, "finetune", finetune)
    done = _run(
        "stdlib-bert", "out", "--task", "bundled", "--rules", "*.qkv: 8", "--distill", "0.5", "--labels", "1",
        "--mask", "0.2", "--crop", "0.9", "--train", "all", "--epochs", "2", "--eval-every", "7", "--resume",
        "--keep-checkpoints", "--calibration-samples", "9",
    )  # fmt: skip
    assert done.exit_code == 130
    assert done.stderr.count("\n") == 1 and "--resume to go on" in done.stderr and done.stdout == ""
    (request,) = seen
    assert request.choice is not None and request.choice.text == "*.qkv: 8"
    assert (request.distill, request.labels, request.mask, request.crop) == (0.5, 1.0, 0.2, 0.9)
    assert (request.train, request.epochs, request.eval_every) == ("all", 2.0, 7)
    assert request.resume and request.keep_checkpoints and not request.force
    assert request.calibration.samples == 9 and request.hidden is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), "steps must be at least 1"),
        (("--lr", "-1"), "lr must be above 0"),
        (("--keep", "0.5", "--ranks", "1,2,3"), "one of --keep, --ranks"),
        (("--keep", "1.5"), "keep must be above 0"),
        (("--epochs", "1", "--steps", "2"), "epochs or steps"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(FlashSVDError, match=words):
        _run("stdlib-bert", str(tmp_path / "out"), "--task", "bundled", *arguments)
    assert not (tmp_path / "out").exists()


def test_no_ranks_train_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def finetune(request: FinetuneRequest, **_: Any) -> FinetuneReport:
        assert request.choice is None
        raise InputError("seen")

    monkeypatch.setattr(run, "finetune", finetune)
    with pytest.raises(InputError, match="seen"):
        _run("stdlib-bert", "out", "--task", "bundled")
