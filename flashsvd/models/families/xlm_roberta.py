"""XLM-RoBERTa (Conneau et al. 2019): RoBERTa over the vocabulary of a hundred languages."""

from __future__ import annotations

from flashsvd.models.bert_like import bert_like, positions_after_padding
from flashsvd.models.family import Preset

FAMILY = bert_like(
    "xlm-roberta",
    "XLM-RoBERTa",
    {
        "xlm-roberta-base": Preset(
            "XLM-RoBERTa-base, random weights",
            {
                "vocab_size": 250002,
                "type_vocab_size": 1,
                "max_position_embeddings": 514,
                "pad_token_id": 1,
                "layer_norm_eps": 1e-5,
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
            },
        ),
    },
    positions_after_padding,
)
