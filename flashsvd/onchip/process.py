"""Starts the process that compiles, and hands on what it finds as it comes. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import flashsvd
from flashsvd.errors import FlashSVDError
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import Compiled


def compile_calls(calls: Sequence[KernelCall], gpu_names: Sequence[str]) -> Generator[Compiled, None, None]:
    """Every call for every GPU, in order, one at a time as it is done; closing the iterator ends the process.

    Raises FlashSVDError where the process dies.
    """
    root = str(Path(flashsvd.__file__).resolve().parent.parent)
    # The worker that asks may interpret Triton; what compiles must not.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        environment["TRITON_CACHE_DIR"] = folder
        process = subprocess.Popen(
            [sys.executable, "-m", "flashsvd.onchip.compiling"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            asked = {"calls": [call.to_json() for call in calls], "gpus": list(gpu_names)}
            process.stdin.write(json.dumps(asked))
            process.stdin.close()
            count = 0
            for line in process.stdout:
                count += 1
                yield Compiled.from_json(json.loads(line))
            if count < len(calls) * len(gpu_names):
                process.wait()
                raise FlashSVDError(
                    f"the compiling process ended with code {process.returncode}: {_last(errors)}"
                )
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _last(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    lines = [line for line in file.read().splitlines() if "Error" in line]  # type: ignore[attr-defined]
    return lines[-1][:200] if lines else "it said nothing"
