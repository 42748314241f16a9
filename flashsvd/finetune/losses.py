"""The three losses of a training run, each a mean over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, C] with labels [B], or the squared error of a regression, [B, 1] with [B]."""
    if logits.shape[-1] == 1:
        return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
    return functional.cross_entropy(logits.float(), labels)


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T²·KL(teacher ‖ student) of logits [B, C] softened by T (Hinton et al., arXiv 1503.02531, section 2).

    The squared difference where there is one logit, a regression.

    >>> same = torch.tensor([[1.0, 2.0, 3.0]])
    >>> distillation_loss(same, same + 5, 2.0).item()
    0.0
    """
    if student.shape[-1] == 1:
        return functional.mse_loss(student.float(), teacher.float())
    q = functional.log_softmax(student.float() / temperature, -1)
    p = functional.log_softmax(teacher.float() / temperature, -1)
    return functional.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """How far the hidden states after every block are off: ‖student - teacher‖² / ‖teacher‖², mean over blocks.

    student, teacher: [B, S, d] after the embeddings and after each block; mask [B, S]: 1 for tokens, 0 for padding.
    Relative, so that no block weighs more for the size of its activations.
    """
    weight = mask[..., None].float()
    shares = [
        ((mine.float() - theirs.float()).square() * weight).sum()
        / (theirs.float().square() * weight).sum().clamp_min(1e-12)
        for mine, theirs in zip(student[1:], teacher[1:], strict=True)
    ]
    return torch.stack(shares).mean()
