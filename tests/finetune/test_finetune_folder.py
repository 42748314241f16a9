"""The output folder: refused when it is someone else's, changed in one move, resumed only by the same request."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flashsvd.errors import CheckpointError, InputError
from flashsvd.finetune import folder
from flashsvd.finetune.request import FinetuneRequest
from flashsvd.results import PlanChoice


@pytest.fixture
def request_(tmp_path: Path) -> FinetuneRequest:
    return FinetuneRequest("stdlib-bert", str(tmp_path / "out"), "bundled", PlanChoice(keep=0.3))


def _out(request: FinetuneRequest) -> Path:
    return Path(request.out)


def test_a_new_folder_and_an_empty_one_will_do(request_: FinetuneRequest) -> None:
    folder.check(_out(request_), request_)
    _out(request_).mkdir()
    folder.check(_out(request_), request_)
    folder.begin(_out(request_), request_)
    assert json.loads((_out(request_) / "checkpoints" / "request.json").read_text())["task"] == "bundled"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_never_replaced(request_: FinetuneRequest, force: bool) -> None:
    _out(request_).mkdir()
    (_out(request_) / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a folder that finetune wrote"):
        folder.check(_out(request_), replace(request_, force=force))


def test_an_earlier_run_needs_force_or_resume(request_: FinetuneRequest) -> None:
    folder.begin(_out(request_), request_)
    with pytest.raises(InputError, match=r"--resume to go on with it, --force"):
        folder.check(_out(request_), request_)
    folder.check(_out(request_), replace(request_, force=True))
    folder.check(_out(request_), replace(request_, resume=True, device="cpu", keep_checkpoints=True))


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"seed": 5}, {"choice": PlanChoice(keep=0.4)}])
def test_another_request_cannot_resume(request_: FinetuneRequest, change: dict[str, object]) -> None:
    folder.begin(_out(request_), request_)
    with pytest.raises(InputError, match=f"started with {next(iter(change))} "):
        folder.check(_out(request_), replace(request_, resume=True, **change))  # type: ignore[arg-type]


def test_nothing_to_resume_and_notes_that_cannot_be_read(request_: FinetuneRequest) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        folder.check(_out(request_), replace(request_, resume=True))
    folder.begin(_out(request_), request_)
    (_out(request_) / "checkpoints" / "request.json").write_text('{"model"')
    with pytest.raises(CheckpointError, match="cannot read"):
        folder.check(_out(request_), replace(request_, resume=True))


def test_a_checkpoint_that_was_cut_off_does_not_count(request_: FinetuneRequest) -> None:
    out = _out(request_)
    assert folder.last_checkpoint(out) is None
    for step, files in ((8, ["trainer_state.json"]), (16, ["trainer_state.json"]), (100, ["optimizer.pt"])):
        place = folder.checkpoints(out) / f"checkpoint-{step}"
        place.mkdir(parents=True)
        for name in files:
            (place / name).write_text("{}")
    last = folder.last_checkpoint(out)
    # By number, not by name: "checkpoint-8" sorts after "checkpoint-16".
    assert last is not None and folder.step_of(last) == 16


@pytest.mark.parametrize("keep", [False, True])
def test_the_model_appears_in_one_move(request_: FinetuneRequest, keep: bool) -> None:
    out = _out(request_)
    folder.begin(out, request_)
    with folder.published(out, keep_checkpoints=keep) as partial:
        (partial / "model.safetensors").write_text("weights")
        assert not (out / "model.safetensors").exists()
    assert (out / "model.safetensors").is_file() and (out / "checkpoints").is_dir() is keep
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_write_that_fails_leaves_everything_as_it_was(request_: FinetuneRequest) -> None:
    out = _out(request_)
    folder.begin(out, request_)
    with (
        pytest.raises(OSError, match="disk is full"),
        folder.published(out, keep_checkpoints=False) as partial,
    ):
        (partial / "model.safetensors").write_text("half")
        raise OSError("the disk is full")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["checkpoints"]
