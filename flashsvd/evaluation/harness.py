"""Decoder tasks of the LM Evaluation Harness (Gao et al., doi 10.5281/zenodo.10256836), on our model objects."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flashsvd.errors import InputError
from flashsvd.measure.intervals import wilson_interval
from flashsvd.measure.perplexity import check_causal
from flashsvd.results import Metric

_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
_SHARES = ("acc", "acc_norm", "exact_match")
_BOOTSTRAP = 1000


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    max_length: int | None = None,
) -> tuple[Metric, ...]:
    """Every metric of the tasks, as `task/metric`; n is how many examples were scored.

    tasks: names that the harness registers, or a task's configuration as a mapping. A name is no path: a task file may
    hold code. limit: examples a task at most. max_length: tokens that the model reads; its positions by default. The
    interval is Wilson's for shares of right answers, and else 1.96 of the harness's own standard errors to either
    side; a metric it gives no error for says so in its name.

    Raises:
        InputError: no such task, a set that is not here and cannot be fetched, no causal language model, or lm-eval
            is not installed.
    """
    for name in tasks:
        if isinstance(name, str) and not _NAME.fullmatch(name):
            raise InputError(f"a harness task is a name such as hellaswag, got {name!r}")
    for word, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{word} must be at least 1, got {value}")
    names = ", ".join(name if isinstance(name, str) else str(name.get("task")) for name in tasks)
    if not tasks:
        raise InputError("name at least one harness task, such as harness:hellaswag")
    check_causal(model)
    with _quiet():
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(
                f"harness:{names} needs the package lm-eval: pip install 'flashsvd[eval]' ({error})"
            ) from None
        runner = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=max_length)
        seeds = dict.fromkeys(
            ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed
        )
        try:
            found = lm_eval.simple_evaluate(
                model=runner,
                tasks=[task if isinstance(task, str) else dict(task) for task in tasks],
                # Its own tasks are thousands of files to read: only where one is named.
                task_manager=TaskManager(include_defaults=any(isinstance(task, str) for task in tasks)),
                limit=limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=False,
                **seeds,
            )
        except KeyError as error:
            raise InputError(f"the harness has no task {names} ({str(error)[:120]})") from None
        except OSError as error:
            raise InputError(
                f"harness:{names} is not on this machine and the hub cannot be reached ({str(error)[:120]})"
            ) from None
    return tuple(
        metric
        for task, values in found["results"].items()
        for metric in _metrics(task, values, found["n-samples"].get(task, {}), seed)
    )


def _metrics(task: str, values: Mapping[str, Any], samples: Mapping[str, int], seed: int) -> Iterator[Metric]:
    n = int(samples.get("effective", values.get("sample_len", 0)))
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or isinstance(value, bool | str):
            continue
        label = f"{task}/{name}" + ("" if filtered == "none" else f" ({filtered})")
        value, error = float(value), values.get(f"{name}_stderr,{filtered}")
        right = value * n
        if name in _SHARES and abs(right - round(right)) < 1e-6:
            low, high = wilson_interval(round(right), n)
        elif isinstance(error, int | float):
            low, high = value - 1.96 * error, value + 1.96 * error
        else:
            low, high, label = value, value, f"{label}, no interval"
        yield Metric(label, value, n, low, high, None, seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its settings and reports, of which it logs many, are ours to give."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
