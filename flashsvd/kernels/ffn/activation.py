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


def in_epilogue(activation: str, dtype: torch.dtype) -> bool:
    """Whether cuBLAS applies it to a product before it is rounded and written; see `linear_activated`."""
    return dtype.itemsize == 2 and activation != "silu"


def linear_activated(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, out: torch.Tensor
) -> torch.Tensor:
    """act(x @ weightᵀ + bias) in half types on a GPU, written to `out` in one pass, for what is `in_epilogue`.

    GELU is its tanh form there, within 4.7e-4 of the exact one, but of sums in fp32: over a whole feed-forward in bf16
    that was nearer to fp64 than the exact form of rounded sums (2.4e-3 against 3.1e-3, D 4096, R 416, H200).
    """
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    result: torch.Tensor = torch.ops.aten._addmm_activation.out(
        bias, x, weight.T, use_gelu=activation != "relu", out=out
    )
    return result
