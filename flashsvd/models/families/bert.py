"""BERT (Devlin et al. 2018)."""

from __future__ import annotations

from flashsvd.models.bert_like import bert_like
from flashsvd.models.family import Preset

FAMILY = bert_like(
    "bert",
    "BERT",
    {
        "bert-base": Preset(
            "BERT-base, random weights",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "max_position_embeddings": 512,
            },
        ),
        "bert-large": Preset(
            "BERT-large, random weights",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "max_position_embeddings": 512,
            },
        ),
    },
)
