"""The command line of a training for machines that have torch and transformers and nothing else."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flashsvd.errors import FlashSVDError


def run_alone(
    prog: str,
    about: str | None,
    train: Callable[..., Any],
    recipe: Any,
    flags: Sequence[str],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the arguments, train, and print the report as JSON; progress goes to stderr. Gives the exit status.

    flags: fields of the recipe that can be set.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    for key in flags:
        default = getattr(recipe, key)
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args(arguments)

    def show(stage: str, done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", file=sys.stderr, flush=True)

    try:
        report = train(
            given.out,
            stdlib=given.stdlib,
            seed=given.seed,
            device=given.device,
            progress=show,
            recipe=replace(recipe, **{key: getattr(given, key) for key in flags}),
        )
    except FlashSVDError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(report), indent=2))
    return 0


def written_flags(recipe: Any, flags: Sequence[str]) -> str:
    """The flags that `run_alone` would read a recipe from."""
    return " ".join(f"--{key.replace('_', '-')} {getattr(recipe, key)}" for key in flags)
