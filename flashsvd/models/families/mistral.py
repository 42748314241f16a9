"""Mistral (Jiang et al. 2023): Llama's block, some releases with a window in every layer."""

from __future__ import annotations

from typing import Any

from flashsvd.models.llama_like import llama_like


def _window(config: Any, layer: int) -> int | None:
    # transformers counts the query itself.
    return config.sliding_window - 1 if config.sliding_window else None


FAMILY = llama_like("mistral", "Mistral", {}, window=_window)
