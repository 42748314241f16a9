"""Llama (Touvron et al. 2023; Llama 3: Grattafiori et al. 2024)."""

from __future__ import annotations

from flashsvd.models.family import Preset
from flashsvd.models.llama_like import llama_like

FAMILY = llama_like(
    "llama",
    "Llama",
    {
        "llama-2-7b": Preset(
            "Llama-2-7B, random weights",
            {
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "intermediate_size": 11008,
                "max_position_embeddings": 4096,
                "vocab_size": 32000,
                "rms_norm_eps": 1e-5,
            },
        ),
        "llama-2-70b": Preset(
            "Llama-2-70B, random weights",
            {
                "hidden_size": 8192,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "intermediate_size": 28672,
                "max_position_embeddings": 4096,
                "vocab_size": 32000,
                "rms_norm_eps": 1e-5,
            },
        ),
        "llama-3-8b": Preset(
            "Llama-3-8B, random weights",
            {
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "max_position_embeddings": 8192,
                "vocab_size": 128256,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            },
        ),
    },
)
