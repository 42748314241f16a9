"""A language model that reads and writes bytes, small enough to write in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from flashsvd.demo.tokenizer import train_causal_tokenizer


@pytest.fixture(scope="session")
def speaker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LlamaForCausalLM of 64 positions with a byte-level tokenizer; </s> ends a text."""
    tokenizer = train_causal_tokenizer(["def main():\n    return 0\n"] * 3, vocab_size=280, max_length=64)
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
