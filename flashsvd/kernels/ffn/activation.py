"""The activations that the feed-forward ops know, in plain torch."""

from __future__ import annotations

import torch

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


def activate(t: torch.Tensor, activation: str) -> torch.Tensor:
    """act(t), a new tensor. gelu is x·Φ(x) with the exact erf, gelu_tanh its tanh approximation, silu
    x·sigmoid(x)."""
    return activate_(t.clone(), activation)


def activate_(t: torch.Tensor, activation: str) -> torch.Tensor:
    """act(t) written over t."""
    if activation == "relu":
        return torch.relu_(t)
    if activation == "silu":
        return torch.nn.functional.silu(t, inplace=True)
    result: torch.Tensor = torch.ops.aten.gelu_(
        t, approximate="tanh" if activation == "gelu_tanh" else "none"
    )
    return result
