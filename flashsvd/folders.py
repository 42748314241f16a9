"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from flashsvd.errors import CheckpointError, InputError

MODEL_FILE = "config.json"


@contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside `out` that takes its place once everything is in it.

    force: a model that is there is replaced, when the new one is complete.

    Raises:
        InputError: `out` is there already, or its parent cannot be made.
        CheckpointError: writing failed, as on a full disk; nothing is left of it.
    """
    check_free(out, force=force)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror or error}") from None
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        words = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot write {out}: {words}; nothing of it was kept") from None
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out: Path, *, force: bool = False) -> None:
    """Raises InputError unless a new model may be written to `out`: for a refusal before the work, not after it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MODEL_FILE).is_file():
        raise InputError(f"{out} is there and is no model: choose a new folder")
    if not force:
        raise InputError(f"{out} holds a model already: choose another folder, or pass --force to replace it")
