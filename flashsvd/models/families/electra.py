"""ELECTRA (Clark et al. 2020): BERT's blocks behind embeddings that may be narrower than they are."""

from __future__ import annotations

from flashsvd.models.bert_like import bert_like
from flashsvd.models.family import Preset

FAMILY = bert_like(
    "electra",
    "ELECTRA",
    {
        "electra-small": Preset(
            "ELECTRA-small, random weights",
            {
                "embedding_size": 128,
                "hidden_size": 256,
                "num_hidden_layers": 12,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "max_position_embeddings": 512,
            },
        ),
        "electra-base": Preset(
            "ELECTRA-base, random weights",
            {
                "embedding_size": 768,
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "max_position_embeddings": 512,
            },
        ),
    },
)
