"""Compiled baselines get no mask where nothing is masked, and one where something is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from flashsvd.bench.unmasked import unmasked

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def masks_seen(model: torch.nn.Module) -> list[bool]:
    """For each attention that torch.compile finds, whether it has a mask."""
    seen: list[bool] = []

    def look(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        for node in graph.graph.nodes:
            if getattr(node.target, "__name__", "") == "scaled_dot_product_attention":
                seen.append(node.kwargs.get("attn_mask") is not None)
        return graph.forward

    torch.compiler.reset()
    with torch.inference_mode():
        torch.compile(model, backend=look, dynamic=False)(torch.arange(24).view(2, 12))
    return seen


def test_nothing_is_masked_and_no_mask_is_made() -> None:
    model = BertModel(BertConfig(**SIZES)).eval()
    with unmasked(model):
        assert masks_seen(model) == [False] * 3
    assert model.config._attn_implementation == "sdpa"


def test_padding_and_windows_keep_their_masks() -> None:
    padded = torch.ones(2, 12, dtype=torch.long)
    padded[1, 5:] = 0
    model = BertModel(BertConfig(**SIZES)).eval()
    expected = model(torch.arange(24).view(2, 12), attention_mask=padded)[0]
    with unmasked(model):
        torch.testing.assert_close(model(torch.arange(24).view(2, 12), attention_mask=padded)[0], expected)
    local = ModernBertModel(ModernBertConfig(**SIZES, local_attention=4, pad_token_id=0)).eval()
    windows = [kind == "sliding_attention" for kind in local.config.layer_types]
    assert any(windows) and not all(windows)
    with unmasked(local):
        assert masks_seen(local) == windows
