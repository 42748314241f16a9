"""Small decoders of every causal family."""

from __future__ import annotations

from tests.small_decoders import decoder, decoder_folder

__all__ = ["decoder", "decoder_folder"]
