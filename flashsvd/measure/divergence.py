"""How far a compressed model's predictions are from the dense model's: KL divergence and top-1 agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from flashsvd.measure.predictions import predict
from flashsvd.models.inputs import Batch


@dataclass(frozen=True)
class Divergence:
    """One value per place where a prediction is made: a sequence of a classifier, an unpadded token of a language
    model.

    kl [places] float64: KL(dense ‖ compressed) in nats. agrees [places] bool: the same most likely class.
    """

    kl: torch.Tensor
    agrees: torch.Tensor


def log_probabilities(
    model: Any, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
) -> list[torch.Tensor]:
    """Log-probabilities of every batch, as `flashsvd.measure.predictions.predict` gives logits."""
    return [log_softmax(logits, -1) for logits in predict(model, batches, progress)]


def divergence(dense: Iterable[torch.Tensor], compressed: Iterable[torch.Tensor]) -> Divergence:
    """Place by place, from two results of `log_probabilities` on the same batches."""
    kl, agrees = [], []
    for reference, mine in zip(dense, compressed, strict=True):
        p, q = reference.double(), mine.double()
        # Rounding may leave -1e-17 where the two are equal.
        kl.append((p.exp() * (p - q)).sum(-1).clamp_min(0))
        agrees.append(reference.argmax(-1) == mine.argmax(-1))
    return Divergence(torch.cat(kl), torch.cat(agrees))
