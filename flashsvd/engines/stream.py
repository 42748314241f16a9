"""The flash engine: attention and feed-forward of every block run through the streaming kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from flashsvd.engines.modules import LowRankLinear, projection
from flashsvd.errors import InputError
from flashsvd.kernels.attention import flash_svd_attention
from flashsvd.kernels.ffn import flash_svd_ffn
from flashsvd.models.family import Family
from flashsvd.models.shape import ModelShape

ATTENTION = "flashsvd"
"""Name under which transformers finds our mask: the padding of the keys, [B, S], never an S x S matrix."""


def stream(model: Any, family: Family, shape: ModelShape, backend: str | None = None) -> None:
    """Makes a low-rank model stream, in place: the same parameters and names, other arithmetic.

    backend: of `flashsvd.kernels`; None takes Triton on CUDA and plain torch elsewhere.
    """
    activation = family.activation(model.config)

    def attend(
        query: nn.Module, key: nn.Module, value: nn.Module, x: torch.Tensor, key_mask: torch.Tensor | None
    ) -> torch.Tensor:
        if key_mask is not None and key_mask.dim() != 2:
            raise InputError(
                f"the flash engine takes a padding mask [batch, sequence], got {list(key_mask.shape)}; "
                "use the lowrank engine for other masks"
            )
        return flash_svd_attention(
            projection(query, x),
            projection(key, x),
            projection(value, x),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            key_mask=key_mask,
            backend=backend,
        )

    def feed_forward(up: nn.Module, down: nn.Module, x: torch.Tensor) -> torch.Tensor:
        # A dense linear is its own second factor: x is then the rank-space activation, W1 its U1, W2 its V2.
        p = linear(x, up.V) if isinstance(up, LowRankLinear) else x
        u1 = up.U if isinstance(up, LowRankLinear) else _weight(up)
        v2 = down.V if isinstance(down, LowRankLinear) else _weight(down)
        s = flash_svd_ffn(p, u1, _bias(up), v2, activation=activation, backend=backend)
        del p
        if isinstance(down, LowRankLinear):
            return linear(s, down.U, down.bias)
        bias = _bias(down)
        return s if bias is None else s.add_(bias)

    family.stream(model.base_model, attend, feed_forward)
    _register_attention()
    model.config._attn_implementation = ATTENTION


def _weight(module: nn.Module) -> torch.Tensor:
    assert isinstance(module, nn.Linear)
    return module.weight


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = module.bias
    return bias if isinstance(bias, torch.Tensor) else None


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _never_called)
    AttentionMaskInterface.register(ATTENTION, _key_padding)


def _never_called(*_: Any, **__: Any) -> Any:
    raise InputError(
        "this attention belongs to the flash engine: build the model with flashsvd.engines.build"
    )


def _key_padding(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """What transformers calls to make a mask: [B, S] bool as it came, or None."""
    return attention_mask
