"""Tunes the kernels for one model, plan and input shape; later runs with FLASHSVD_AUTOTUNE=1 find their tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers import PreTrainedModel

from flashsvd.bench.random_factors import RANDOM, random_spectra
from flashsvd.data import timing_ids
from flashsvd.devices import available_bytes
from flashsvd.engines.build import build
from flashsvd.errors import DeviceError, OutOfMemoryError
from flashsvd.factors import factorise
from flashsvd.kernels.tuned_store import Entry, Store
from flashsvd.kernels.tuning import met, store_of, switched_on
from flashsvd.models.load import pick_device
from flashsvd.progress import Progress
from flashsvd.results import PlanChoice
from flashsvd.session import Session


@dataclass(frozen=True)
class TuneRequest:
    """What is tuned for. Factors are drawn: tiles depend on sizes alone."""

    model: str
    choice: PlanChoice
    per_head: bool = True
    batch: int = 8
    seq: int = 256
    dtype: str = "fp32"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """An entry that a forward used, and whether it was timed just now."""

    entry: Entry
    is_new: bool


def store_for(device: str) -> Store:
    """The store of the GPU that `device` names ("auto", "cuda" or "cuda:N").

    Raises:
        DeviceError: it names no GPU, or there is none.
        InputError: another word.
    """
    place = pick_device(device) if torch.cuda.is_available() else torch.device("cpu")
    if place.type != "cuda":
        raise DeviceError(
            f"tuning needs a CUDA GPU, got device {device!r}"
            + ("" if torch.cuda.is_available() else " on a machine without one")
            + "; kernels run their default tiles without it"
        )
    return store_of(place)


def tune_model(request: TuneRequest, progress: Progress | None = None) -> tuple[Tuned, ...]:
    """Runs the flash engine over one batch, once whole and once padded, with tuning on, and says what it used.

    What an earlier call in this process has prepared is not tuned again. The model's head is left off.

    Raises:
        DeviceError: there is no GPU.
        InputError, PlanError, ModelError, CheckpointError: as in `flashsvd.compare.compare`.
        OutOfMemoryError: the batch does not fit.
    """
    store = store_for(request.device)
    report = progress or (lambda stage, share: None)
    session = Session()
    report("Loading the model", 0.0)
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    plan = request.choice.resolve(loaded.shape)
    loaded = session.longer(loaded, request.seq)
    plan = replace(plan, shape=loaded.shape.with_per_head(plan.shape.per_head))
    ids = timing_ids(loaded, request.batch, request.seq, request.seed)
    report("Making the factors", 0.1)
    encoder = replace(loaded, model=cast(PreTrainedModel, loaded.model.base_model))
    factors = factorise(encoder, random_spectra(loaded, request.seed), plan)
    model = build(encoder, "flash", factors, plan, method=RANDOM)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    before, known = store.read(), len(met())
    try:
        with switched_on(), torch.inference_mode():
            report("Timing kernels", 0.2)
            model(ids)
            report("Timing kernels with a padding mask", 0.6)
            model(ids, attention_mask=mask)
    except torch.OutOfMemoryError:
        what = f"batch {request.batch} x {request.seq} tokens of {request.model}"
        raise OutOfMemoryError(what, None, available_bytes(loaded.device)) from None
    return tuple(Tuned(entry, before.get((entry.kernel, entry.key)) != entry) for entry in met()[known:])
