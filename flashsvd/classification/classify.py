"""Runs both classifiers on one text."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np

from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.engines.build import build, checked_between_layers
from flashsvd.engines.stream import check_streams
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.generation.agreement import log_softmax
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.predictions import predict
from flashsvd.methods import method_named
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.session import Session
from flashsvd.tasks.base import Examples
from flashsvd.tasks.encoding import batches, tokenizer_of
from flashsvd.tasks.labels import head_of


def classify_pair(
    request: ClassifyRequest, session: Session | None = None, progress: Progress | None = None
) -> ClassPair:
    """Probabilities of the classes, dense and compressed.

    progress: called between layers; may raise Cancelled.

    Raises:
        InputError: an empty text, one longer than the model reads, or a model that gives no classes.
        ModelError, CheckpointError, PlanError, DeviceError: see where each is made.
        NonFiniteError: a logit is not finite.
    """
    request.check()
    report = progress or (lambda words, share: None)
    report("Loading the model", 0.0)
    session = session or Session()
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    classes = _classes(loaded)
    batch = _read(loaded, request.text)
    check_streams(loaded.family)
    plan = request.choice.resolve(method_named(request.method).shape(loaded.shape))
    spectra, _ = session.spectra(
        loaded, request.method, lambda stage, share: report(stage, 0.1 + 0.7 * share)
    )
    report("Building the compressed model", 0.8)
    factors = factorise(loaded, spectra, plan)
    model = build(loaded, "flash", factors, plan, method=request.method)
    with ExitStack() as hooks:
        for one in (loaded.model, model):
            hooks.enter_context(
                checked_between_layers(one, loaded.family, lambda: report("Classifying", 0.9))
            )
        dense, compressed = (_probabilities(one, batch) for one in (loaded.model, model))
    report("Done", 1.0)
    return ClassPair(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=loaded.name,
        method=request.method,
        plan=plan,
        dtype=request.dtype,
        text=request.text,
        tokens=batch["input_ids"].shape[1],
        classes=classes,
        dense=dense,
        compressed=compressed,
    )


def _classes(loaded: LoadedModel) -> tuple[str, ...]:
    head = head_of(loaded)
    if head is None or len(head.classes) < 2:
        raise InputError(
            f"{loaded.name} ({type(loaded.model).__name__}) neither writes text nor says a text's class: expected a "
            "causal language model, or a model for sequence classification with two classes or more"
        )
    return head.classes


def _read(loaded: LoadedModel, text: str) -> Batch:
    longest = loaded.shape.max_positions
    count = len(tokenizer_of(loaded)(text, verbose=False)["input_ids"])
    if count > longest:
        raise InputError(
            f"the text has {count} tokens, but {loaded.name} reads {longest} at most: shorten it"
        )
    return batches(Examples((text,), None, None), loaded, 1, max_length=longest)[0]


def _probabilities(model: Any, batch: Batch) -> tuple[float, ...]:
    logits = predict(model, [batch])[0][0].numpy()
    return tuple(float(value) for value in np.exp(log_softmax(logits)))
