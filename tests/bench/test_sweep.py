"""Sweeps: every combination, streamed, and one that does not fit costs one line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from flashsvd.bench.rows import Baselines, Row
from flashsvd.bench.sweep import product, run_points
from flashsvd.errors import InputError, OutOfMemoryError


@dataclass(frozen=True)
class Fake:
    batch: int

    bench = "fake"
    baselines = Baselines("a", "a")

    def check(self) -> None: ...

    def config(self) -> dict[str, Any]:
        return {"batch": self.batch}

    def command(self) -> str:
        return f"--batch {self.batch}"


def test_points_come_one_by_one_and_a_full_memory_is_one_of_them() -> None:
    measured: list[int] = []

    def measure(request: Fake) -> tuple[str, tuple[Row, ...]]:
        measured.append(request.batch)
        if request.batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nGPU 0 has ...")
        if request.batch == 3:
            raise OutOfMemoryError("batch 3", 10, 5)
        return "about", (Row("a", "words", "measured"),)

    points: Iterator[Any] = run_points([Fake(batch) for batch in (1, 2, 3, 4)], measure)
    first = next(points)
    assert measured == [1] and first.rows[0].name == "a" and first.command == "--batch 1" and first.created
    rest = list(points)
    assert [bool(point.rows) for point in rest] == [False, False, True]
    assert rest[0].failure == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert rest[1].failure.startswith("OutOfMemoryError: batch 3 needs 10 B but 5 B is free")


def test_a_sweep_has_bounds() -> None:
    with pytest.raises(InputError, match="at most 1000 points, this one has 2000"):
        product({"seq": range(1000), "batch": (1, 2)})
