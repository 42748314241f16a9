"""The optimisation loop that every demo checkpoint is trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from flashsvd.errors import FlashSVDError

Progress = Callable[[str, int, int], None]
CHECK_EVERY = 50


def descend(
    loss_of_batch: Callable[[], Tensor],
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    stage: str,
    progress: Progress,
) -> None:
    """AdamW for `steps` steps on a loss that draws its own batch: warm-up, cosine to zero, bf16 autocast on CUDA.

    Raises FlashSVDError when the loss is not finite.
    """
    if steps == 0:
        return
    named = list(parameters)
    device = named[0][1].device
    matrices = [p for _, p in named if p.ndim > 1]
    vectors = [p for _, p in named if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    warmup = max(1, steps // 16)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    clipped = [*matrices, *vectors]
    for step in range(steps):
        with _autocast(device):
            loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            value = loss.item()
            if not math.isfinite(value):
                raise FlashSVDError(
                    f"expected a finite loss, got {value} at step {step + 1} of {stage!r}; lower the rate"
                )
            progress(f"{stage} (loss {value:.3f})", step + 1, steps)


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
