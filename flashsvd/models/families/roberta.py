"""RoBERTa (Liu et al. 2019): BERT's blocks, positions counted after the padding token's id."""

from __future__ import annotations

from flashsvd.models.bert_like import bert_like, positions_after_padding
from flashsvd.models.family import Preset

_PUBLISHED = {
    "vocab_size": 50265,
    "type_vocab_size": 1,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}

FAMILY = bert_like(
    "roberta",
    "RoBERTa",
    {
        "roberta-base": Preset(
            "RoBERTa-base, random weights",
            {
                **_PUBLISHED,
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
            },
        ),
        "roberta-large": Preset(
            "RoBERTa-large, random weights",
            {
                **_PUBLISHED,
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
        ),
    },
    positions_after_padding,
)
