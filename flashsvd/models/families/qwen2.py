"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's block with biases in q, k and v."""

from __future__ import annotations

from flashsvd.models.family import Preset
from flashsvd.models.llama_like import llama_like, window_by_layer

FAMILY = llama_like(
    "qwen2",
    "Qwen2",
    {
        "qwen2.5-0.5b": Preset(
            "Qwen2.5-0.5B, random weights",
            {
                "hidden_size": 896,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "intermediate_size": 4864,
                "max_position_embeddings": 32768,
                "vocab_size": 151936,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "tie_word_embeddings": True,
            },
        ),
    },
    window=window_by_layer,
)
