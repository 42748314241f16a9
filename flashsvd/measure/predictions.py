"""What a model says of batches of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from flashsvd.errors import NonFiniteError
from flashsvd.models.inputs import Batch


@torch.inference_mode()
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
    for number, batch in enumerate(batches):
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits
        if not torch.isfinite(logits).all():
            raise NonFiniteError(f"logits are not finite in batch {number + 1}: use fp32")
        if logits.dim() == 3:
            mask = inputs.get("attention_mask")
            logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
        out.append(logits.float().cpu())
        if progress:
            progress(number + 1)
    return out
