"""A runtime with the face of ours and transformers inside: what the benches do with one needs no kernel."""

from __future__ import annotations

from typing import Any

import torch

from flashsvd.bench.decoders import DynamicDecoder
from flashsvd.engines.build import weight_bytes


class FakeRuntime:
    """spoil: what becomes of a step's logits."""

    def __init__(self, model: Any, spoil: Any = None) -> None:
        self._decoder = DynamicDecoder(model)
        self._spoil = spoil or (lambda logits: logits)
        self.weight_bytes = weight_bytes(model)
        self.workspace_bytes = 1000

    @property
    def kv_bytes(self) -> int:
        return self._decoder.kv_bytes

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        assert mask is None
        return self._decoder.fill(ids)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._spoil(self._decoder.step(tokens))
        return logits

    def rewind(self, tokens: int) -> None:
        assert tokens == self._decoder._filled
        self._decoder.rewind()
