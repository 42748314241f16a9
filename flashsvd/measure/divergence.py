"""How far a compressed model's predictions are from the dense model's: KL divergence and top-1 agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from flashsvd.errors import NonFiniteError

Batch = Mapping[str, torch.Tensor]
"""What a model is called with: input_ids [B, S], attention_mask [B, S], perhaps labels."""


@dataclass(frozen=True)
class Divergence:
    """One value per place where a prediction is made: a sequence of a classifier, an unpadded token of a language
    model.

    kl [places] float64: KL(dense ‖ compressed) in nats. agrees [places] bool: the same most likely class.
    """

    kl: torch.Tensor
    agrees: torch.Tensor


@torch.inference_mode()
def log_probabilities(
    model: Any, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
) -> list[torch.Tensor]:
    """Log-probabilities [places, classes] of every batch, float32 on the CPU.

    progress: called with the number of batches done.

    Raises:
        NonFiniteError: a logit is not finite; nothing is skipped.
    """
    out = []
    for number, batch in enumerate(batches):
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits
        if not torch.isfinite(logits).all():
            raise NonFiniteError(f"logits are not finite in batch {number + 1}")
        if logits.dim() == 3:
            mask = inputs.get("attention_mask")
            logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
        out.append(log_softmax(logits.float(), -1).cpu())
        if progress:
            progress(number + 1)
    return out


def divergence(dense: Iterable[torch.Tensor], compressed: Iterable[torch.Tensor]) -> Divergence:
    """Place by place, from two results of `log_probabilities` on the same batches."""
    kl, agrees = [], []
    for reference, mine in zip(dense, compressed, strict=True):
        p, q = reference.double(), mine.double()
        # Rounding may leave -1e-17 where the two are equal.
        kl.append((p.exp() * (p - q)).sum(-1).clamp_min(0))
        agrees.append(reference.argmax(-1) == mine.argmax(-1))
    return Divergence(torch.cat(kl), torch.cat(agrees))
