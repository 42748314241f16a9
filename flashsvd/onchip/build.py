"""Makes the table of compiled kernels that ships: `python -m flashsvd.onchip.build`.

What was compiled before is taken from the cache, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from flashsvd.allocate import uniform
from flashsvd.gpus import GPUS
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import KernelCall, calls_of, most_rank, sweep
from flashsvd.onchip.compiled import Compiled, Manifest, shipped_path, write
from flashsvd.onchip.process import compile_calls

_SHOWN = (("stdlib-bert", "fp32", 8, 256), ("stdlib-llama", "fp32", 8, 256), ("bert-base", "bf16", 32, 512))
"""What pages open on: compiled at just their ranks."""
_SWEPT = (
    ("bert-base", ("ffn", "rank_space", "attention", "ffn_hopper", "rank_space_hopper")),
    ("stdlib-llama", ("ffn", "attention", "step")),
    ("bert-base", ("ffn_v2",)),
    ("llama-2-7b", ("step", "attention")),
)
_AT = (("fp32", 8, 256), ("bf16", 32, 512))
"""Precision, sequences and tokens of the sweeps; other ones are compiled when a page asks."""


def table_calls() -> Iterator[KernelCall]:
    """Every call of the table, each once: what pages open on, then sweeps of the rank."""
    found: dict[KernelCall, None] = {}
    for model, dtype, batch, seq in _SHOWN:
        found.update(dict.fromkeys(_calls(model, dtype, batch, seq, 0.5).values()))
    for model, kernels in _SWEPT:
        for dtype, batch, seq in _AT:
            # A small share, so that no kernel refuses the ranks that the sweep starts from.
            calls = _calls(model, dtype, batch, seq, 0.1)
            for name in kernels:
                if name in calls:
                    found.update(dict.fromkeys(sweep(calls[name], most_rank(calls[name]))))
    yield from found


def _calls(model: str, dtype: str, batch: int, seq: int, share: float) -> dict[str, KernelCall]:
    shape = shape_of(resolve(model))
    assert shape is not None
    calls = calls_of(uniform(shape, share), 0, batch, seq, dtype)
    return {name: call for name, call in calls.items() if isinstance(call, KernelCall)}


def main(arguments: list[str] | None = None) -> int:
    """Compiles all calls of the table for all GPUs and writes it."""
    parser = argparse.ArgumentParser(prog="python -m flashsvd.onchip.build", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=shipped_path())
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="after that, write what is there and say what is missing"
    )
    options = parser.parse_args(arguments)
    calls = list(table_calls())
    # Triton spills most on the oldest and takes longest for them, so they come last.
    new = [one.name for one in GPUS if one.sm >= 80]
    old = [one.name for one in GPUS if one.sm < 80]
    rows: list[Compiled] = []
    lock, stop = threading.Lock(), time.monotonic() + 60 * options.minutes

    def work(part: tuple[list[KernelCall], list[str]]) -> None:
        if time.monotonic() > stop:
            return
        for row in compile_calls(*part):
            with lock:
                rows.append(row)
                if len(rows) % 200 == 0:
                    print(f"{len(rows)} of {len(calls) * len(GPUS)}", flush=True)
            if time.monotonic() > stop:
                return

    parts = [(calls[at : at + 8], names) for names in (new, old) for at in range(0, len(calls), 8) if names]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, parts))
    if not rows:
        print("nothing was compiled", file=sys.stderr)
        return 1
    missing = len(calls) * len(GPUS) - len(rows)
    date = datetime.now(UTC).date().isoformat()
    write(options.out, rows, Manifest(rows[0].triton, date, "python -m flashsvd.onchip.build", len(rows)))
    print(f"{len(rows)} rows in {options.out}" + (f", {missing} missing" if missing else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
