"""What a Family says of its blocks is enough to write them down, and `stream` puts what is written in their place."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from flashsvd.kernels.ffn.activation import activate
from flashsvd.kernels.gate import relative_error
from flashsvd.models.family import Family, families
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel

Inputs = dict[str, torch.Tensor]
FamilyModel = Callable[..., LoadedModel]


class Written:
    """Attention and feed-forward of any family, in plain torch, from nothing but its Family and its linears."""

    def __init__(self, loaded: LoadedModel, family: Family) -> None:
        self.family, self.shape = family, loaded.shape
        self.base, self.config = loaded.model.base_model, loaded.model.config

    def linear(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear_of(self.base, self.family, self.shape, layer, name)(x)

    def sublayer(self, layer: int, name: str, x: torch.Tensor, function: Callable[..., Any]) -> torch.Tensor:
        norm = self.base.get_submodule(self.family.norm(layer, name))
        return x + function(norm(x)) if self.family.pre_norm else norm(x + function(x))

    def attention(
        self,
        layer: int,
        hidden_states: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: object,
        cache: object = None,
    ) -> torch.Tensor:
        # The angles that come along are left alone: that the family's theta makes them is what is tested.
        seq = hidden_states.shape[1]
        positions = torch.arange(seq)
        seen = torch.ones(seq, seq, dtype=torch.bool)
        window = self.family.window and self.family.window(self.config, layer)
        if window is not None:
            seen = (positions[:, None] - positions).abs() <= window
        if key_mask is not None:
            seen = seen & key_mask[:, None, None]

        def function(x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                self.linear(layer, name, x).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)
                for name in "qkv"
            )
            if self.family.rotary:
                theta = self.family.rotary(self.config, layer)
                q, k = (_turned(heads, positions, theta) for heads in (q, k))
            scores = (q @ k.mT / self.shape.head_dim**0.5).masked_fill(~seen, -torch.inf)
            heads = scores.softmax(-1).nan_to_num() @ v
            return self.linear(layer, "o", heads.transpose(1, 2).flatten(-2))

        return self.sublayer(layer, "attention", hidden_states, function)

    def feed_forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        activation = self.family.activation(self.config)
        gated = "gate" in self.shape.slot_names

        def function(x: torch.Tensor) -> torch.Tensor:
            wide = activate(self.linear(layer, "gate" if gated else "up", x), activation)
            return self.linear(layer, "down", wide * self.linear(layer, "up", x) if gated else wide)

        return self.sublayer(layer, "feed_forward", x, function)


def _turned(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    half = heads.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), -1)


@torch.inference_mode()
def _error(loaded: LoadedModel, family: Family, encoded: Inputs) -> float:
    """Between transformers' hidden states and those of the blocks as written, where there is no padding."""
    AttentionInterface.register("written", lambda *_, **__: pytest.fail("a block ran its own attention"))
    AttentionMaskInterface.register("written", lambda *_, attention_mask=None, **__: attention_mask)
    model = copy.deepcopy(loaded.model)
    written = Written(loaded, family)
    family.stream(model.base_model, written.attention, written.feed_forward)
    model.config._attn_implementation = "written"
    valid = encoded.get("attention_mask", torch.ones_like(encoded["input_ids"])).bool()
    mine, reference = (m(**encoded).last_hidden_state[valid] for m in (model, loaded.model))
    return relative_error(mine, reference)


# transformers turns q and k in float32, whatever the model's dtype.
_ROTARY_LIMIT = 1e-6


@pytest.mark.parametrize("family", sorted(name for name, family in families().items() if not family.decoder))
def test_a_family_describes_its_blocks(family_model: FamilyModel, family: str, encoded: Inputs) -> None:
    loaded = family_model(family, "base", num_hidden_layers=4)
    limit = _ROTARY_LIMIT if loaded.family.rotary else 1e-10
    assert _error(loaded, loaded.family, encoded) < limit


@pytest.mark.parametrize(
    "wrong",
    [
        {"fused": (("k", "q", "v"), ("gate", "up"))},
        {"fused": (("q", "k", "v"), ("up", "gate"))},
        {"window": lambda config, layer: 3 if layer % 3 else None},
        {"window": lambda config, layer: 5 if layer % 3 else None},
        {"window": lambda config, layer: 4},
        {"rotary": lambda config, layer: 10_000.0},
        {"rotary": lambda config, layer: 10_000.0 if layer % 3 == 0 else 160_000.0},
        {"pre_norm": False},
    ],
)
def test_a_wrong_description_is_caught(
    family_model: FamilyModel, encoded: Inputs, wrong: dict[str, Any]
) -> None:
    loaded = family_model("modernbert", "base", num_hidden_layers=4)
    family = dataclasses.replace(loaded.family, **wrong)
    assert _error(loaded, family, encoded) > 1000 * _ROTARY_LIMIT
