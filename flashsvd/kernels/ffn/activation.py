"""The activations that the feed-forward op knows, in plain torch."""

from __future__ import annotations

import torch

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")


def activate(t: torch.Tensor, activation: str) -> torch.Tensor:
    """act(t), a new tensor. gelu is x·Φ(x) with the exact erf, gelu_tanh its tanh approximation."""
    if activation == "relu":
        return torch.relu(t)
    return torch.nn.functional.gelu(t, approximate="tanh" if activation == "gelu_tanh" else "none")


def activate_(t: torch.Tensor, activation: str) -> torch.Tensor:
    """act(t) written over t."""
    if activation == "relu":
        return torch.relu_(t)
    result: torch.Tensor = torch.ops.aten.gelu_(
        t, approximate="tanh" if activation == "gelu_tanh" else "none"
    )
    return result
