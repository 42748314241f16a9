"""What a model says of batches of text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from flashsvd.errors import NonFiniteError
from flashsvd.models.inputs import Batch

_AT_ONCE = 4
"""Batches that a CPU works on at once, at most: each takes memory of its own."""


def predict(
    model: Any, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
) -> list[torch.Tensor]:
    """Logits [places, classes] of every batch, float32 on the CPU.

    A place is a sequence of a classifier, or an unpadded token of a language model. progress: called with the number of
    batches done.

    Raises:
        NonFiniteError: a logit is not finite; nothing is skipped.
    """
    out = []
    given = list(enumerate(batches, 1))
    with _side_by_side(model.device, len(given)) as each:
        for logits in each(functools.partial(_logits, model), given):
            out.append(logits)
            if progress:
                progress(len(out))
    return out


@torch.inference_mode()
def _logits(model: Any, numbered: tuple[int, Batch]) -> torch.Tensor:
    number, batch = numbered
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    if not torch.isfinite(logits).all():
        raise NonFiniteError(f"logits are not finite in batch {number}: use fp32")
    if logits.dim() == 3:
        mask = inputs.get("attention_mask")
        logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    return logits.float().cpu()


@contextmanager
def _side_by_side(device: torch.device, count: int) -> Iterator[Callable[..., Iterator[torch.Tensor]]]:
    """A `map` for batches; on a CPU with several threads it works on several at once, each with its share of them.

    Threads that share an op wait for one another in each, and beside other work, such as a browser, for one that is not
    running. 512 pieces by the flash engine on 2 cores: 4.2 s either way alone; beside a busy process 4.1 s, and 13 to
    22 s where both threads shared every op.
    """
    threads = torch.get_num_threads()
    at_once = min(_AT_ONCE, threads, count) if device.type == "cpu" else 1
    if at_once < 2:
        yield map
        return
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        # What threads of the pool were told is taken for the whole process where a new thread asks.
        torch.set_num_threads(threads)
