"""A language model small enough to be measured in a moment."""

from pathlib import Path

import pytest

from tests.small_decoders import DecoderFolder, decoder_folder

__all__ = ["decoder_folder"]


@pytest.fixture(scope="session")
def writer_folder(decoder_folder: DecoderFolder) -> Path:
    """A saved LlamaForCausalLM: 3 layers, 4 heads of 24, 2 key heads, 100 positions."""
    return decoder_folder("llama")
