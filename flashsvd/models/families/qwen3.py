"""Qwen3 (Yang et al. 2025): Llama's block with RMS norms over the head dim of q and k."""

from __future__ import annotations

from flashsvd.models.family import Preset
from flashsvd.models.llama_like import llama_like, window_by_layer

FAMILY = llama_like(
    "qwen3",
    "Qwen3",
    {
        "qwen3-0.6b": Preset(
            "Qwen3-0.6B, random weights",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 3072,
                "max_position_embeddings": 40960,
                "vocab_size": 151936,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "tie_word_embeddings": True,
            },
        ),
    },
    window=window_by_layer,
    head_norms=lambda layer: (f"layers.{layer}.self_attn.q_norm", f"layers.{layer}.self_attn.k_norm"),
)
