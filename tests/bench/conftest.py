"""A language model small enough to be measured in a moment."""

from pathlib import Path

import pytest
import torch
import transformers


@pytest.fixture(scope="session")
def writer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LlamaForCausalLM: 2 layers, 4 heads of 16, 2 key heads, 96 positions."""
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=60,
        max_position_embeddings=96,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("writer")
    model.save_pretrained(folder)
    return folder
