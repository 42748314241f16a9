"""Divergence of two models run side by side, for text whose log-probabilities would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.functional import log_softmax

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.measure.divergence import Divergence
from flashsvd.models.inputs import Batch
from flashsvd.stats.accumulate import wide

_CHUNK_BYTES = 2**26


@torch.inference_mode()
def divergence_between(
    dense: Any,
    compressed: Any,
    batches: Iterable[Batch],
    progress: Callable[[int], None] | None = None,
) -> Divergence:
    """`divergence` of `log_probabilities` of both models, holding the logits of one batch at a time.

    Log-probabilities of a vocabulary are made of 64 MiB of places at a time, on the dense model's device. progress:
    called with the number of batches done.

    Raises:
        NonFiniteError: a logit of either is not finite; nothing is skipped.
        InputError: no batches, or models of different classes or vocabularies.
    """
    kl, agrees = [], []
    for number, batch in enumerate(batches):
        mine = [
            _places(model, batch, number, what)
            for model, what in ((dense, "dense"), (compressed, "compressed"))
        ]
        if mine[0].shape != mine[1].shape:
            raise InputError(
                f"the models predict {mine[0].shape[-1]} and {mine[1].shape[-1]} classes: they are not of one head"
            )
        rows = max(1, _CHUNK_BYTES // (8 * mine[0].shape[-1]))
        for one, other in zip(mine[0].split(rows), mine[1].split(rows), strict=True):
            p, q = (log_softmax(wide(part), -1).double() for part in (one, other.to(one.device)))
            kl.append((p.exp() * (p - q)).sum(-1).clamp_min(0).cpu())
            agrees.append((p.argmax(-1) == q.argmax(-1)).cpu())
        if progress:
            progress(number + 1)
    if not kl:
        raise InputError("divergence needs at least one batch, got none")
    return Divergence(torch.cat(kl), torch.cat(agrees))


def _places(model: Any, batch: Batch, number: int, what: str) -> torch.Tensor:
    """Logits [places, classes]: of the sequences, or of the tokens that are not padding."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    if logits.dim() == 3:
        mask = inputs.get("attention_mask")
        logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    if not torch.isfinite(logits).all():
        raise NonFiniteError(f"logits of the {what} model are not finite in batch {number + 1}")
    return logits
