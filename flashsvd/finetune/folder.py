"""The folder that a run writes: checkpoints while it trains, the model in one move at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashsvd.errors import CheckpointError, InputError
from flashsvd.finetune.request import FinetuneRequest

REPORT = "finetune.json"
_REQUEST, _BEFORE = "request.json", "before.json"


def checkpoints(out: Path) -> Path:
    """Where the checkpoints of a run are while it trains."""
    return out / "checkpoints"


def check(out: Path, request: FinetuneRequest) -> None:
    """Refuses a folder that a run must not write to; changes nothing.

    A new or empty folder will do, with force what an earlier run left, and with resume one of the same request.

    Raises:
        InputError: the folder holds something else, a run without resume or force, or one of another request.
        CheckpointError: the notes of the run to resume cannot be read.
    """
    notes = checkpoints(out) / _REQUEST
    if request.resume:
        _check_same(notes, request)
        return
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if out.is_file() or not ((out / REPORT).is_file() or notes.is_file()):
            raise InputError(f"{out} is not a folder that finetune wrote: choose a new one")
        if not request.force:
            raise InputError(
                f"{out} holds an earlier run: pass --resume to go on with it, --force to replace it, "
                "or choose another folder"
            )


def begin(out: Path, request: FinetuneRequest) -> None:
    """Makes a folder that `check` let pass ready to train into.

    Without resume, checkpoints of an earlier run go now, its model when the new one is complete.
    """
    if request.resume:
        return
    shutil.rmtree(checkpoints(out), ignore_errors=True)
    checkpoints(out).mkdir(parents=True)
    _write(checkpoints(out) / _REQUEST, request.training())


def _check_same(notes: Path, request: FinetuneRequest) -> None:
    if not notes.is_file():
        raise InputError(f"nothing to resume: {notes.parent} holds no run; leave --resume out")
    saved, asked = _read(notes), json.loads(json.dumps(request.training()))
    changed = sorted(name for name in asked if saved.get(name) != asked[name])
    if changed:
        name = changed[0]
        raise InputError(
            f"the run in {notes.parent} was started with {name} {saved.get(name)!r}, not {asked[name]!r}: "
            "resume it with the same options, or start again with --force"
        )


def last_checkpoint(out: Path) -> Path | None:
    """The latest complete checkpoint; the state of the trainer is what is written last of one."""
    found = [
        path for path in checkpoints(out).glob("checkpoint-*") if (path / "trainer_state.json").is_file()
    ]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written.

    >>> step_of(Path("out/checkpoints/checkpoint-120"))
    120
    """
    return int(checkpoint.name.rpartition("-")[2])


def keep_before(out: Path, scores: dict[str, Any]) -> None:
    """Notes the scores from before the first step, so that a resumed run need not measure them again."""
    _write(checkpoints(out) / _BEFORE, scores)


def kept_before(out: Path) -> dict[str, Any] | None:
    """What `keep_before` noted, or None."""
    file = checkpoints(out) / _BEFORE
    return _read(file) if file.is_file() else None


@contextmanager
def published(out: Path, *, keep_checkpoints: bool) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `out` once everything is in it."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        out.rename(old)
        partial.rename(out)
        if keep_checkpoints:
            checkpoints(old).rename(checkpoints(out))
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(file: Path, value: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file} ({error}); start again with --force") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a note of a run; start again with --force")
    return found
