"""Batches that a CPU works on side by side give what they give one after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashsvd.errors import Cancelled, NonFiniteError
from flashsvd.measure.predictions import predict

THREADS = 3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    assert torch.get_num_threads() == THREADS
    torch.set_num_threads(before)


class Echo:
    """Says the ids that it is given; the first batches take longest."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        self.calls += 1
        self.seen.append((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.02 / self.calls)
        assert torch.is_inference_mode_enabled()
        return SimpleNamespace(logits=input_ids.double())


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((2, 3), float(n)), "labels": torch.zeros(2)} for n in range(count)]


def test_results_and_progress_come_in_order() -> None:
    model, told = Echo(), []
    found = predict(model, iter(batches(9)), told.append)
    assert [float(one[0, 0]) for one in found] == list(range(9)) and told == list(range(1, 10))
    assert all(one.dtype == torch.float32 and one.shape == (2, 3) for one in found)
    assert 1 < len({thread for thread, _ in model.seen}) <= THREADS
    assert {count for _, count in model.seen} == {1}


def test_one_batch_has_all_threads() -> None:
    model = Echo()
    predict(model, batches(1))
    assert model.seen == [(threading.get_ident(), THREADS)]


def test_padding_of_tokens_is_left_out() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    given = [{"input_ids": torch.ones(2, 3, 5), "attention_mask": mask} for _ in range(3)]
    assert [len(one) for one in predict(Echo(), given)] == [3, 3, 3]


def test_the_batch_that_is_not_finite_is_named() -> None:
    given = batches(6)
    given[3]["input_ids"][1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="in batch 4"):
        predict(Echo(), given)


@pytest.mark.parametrize("inside", [True, False])
def test_who_cancels_is_heard_before_all_is_done(inside: bool) -> None:
    model = Echo()

    def stop(done: int) -> None:
        if done == 4:
            raise Cancelled("enough")

    class Stops(Echo):
        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
            stop(self.calls)
            return super().__call__(input_ids)

    model = Stops() if inside else model
    with pytest.raises(Cancelled):
        predict(model, batches(200), None if inside else stop)
    assert model.calls < 100
