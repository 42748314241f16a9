"""Keys and values of a fixed number of tokens, as transformers writes them and as steps read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from flashsvd.errors import InputError


@dataclass(frozen=True)
class CacheWidths:
    """Of one layer: kv heads, and columns that each keeps of a key and of a value."""

    kv_heads: int
    key: int
    value: int

    def nbytes(self, batch: int, context: int, itemsize: int) -> int:
        """Bytes for `context` tokens of `batch` sequences.

        >>> CacheWidths(8, 128, 64).nbytes(1, 4096, 2)
        12582912
        """
        return batch * context * self.kv_heads * (self.key + self.value) * itemsize


class _Layer(CacheLayerMixin):
    """One layer of a `FixedCache`."""

    is_compileable = False
    is_sliding = False

    def __init__(self, widths: CacheWidths, batch: int, context: int, like: torch.Tensor) -> None:
        super().__init__()
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self.keys, self.values = (
            torch.zeros(batch, widths.kv_heads, context, width, dtype=like.dtype, device=like.device)
            for width in (widths.key, widths.value)
        )
        self.length = 0
        self.is_initialized = True
        self.dtype, self.device = like.dtype, like.device

    def lazy_initialization(self, *_: Any) -> None:
        """Nothing: the memory is there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys [B, Hk, S, width] and values; returns those of all tokens so far, as views."""
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            raise InputError(
                f"the cache holds {self.keys.shape[2]} tokens, got {end}: make it with a larger context"
            )
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length


class FixedCache(Cache):
    """A cache of transformers whose memory is made once: keys [B, Hk, context, width] and values per layer."""

    def __init__(self, widths: Sequence[CacheWidths], batch: int, context: int, like: torch.Tensor) -> None:
        """like: of the dtype and on the device of what it keeps."""
        self._fixed = [_Layer(width, batch, context, like) for width in widths]
        super().__init__(layers=list(self._fixed))

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return self._fixed[0].length

    def set_length(self, tokens: int) -> None:
        """As after its first `tokens` tokens; nothing is written."""
        for layer in self._fixed:
            layer.length = tokens

    @property
    def nbytes(self) -> int:
        """Of all keys and values, whether there yet or not."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._fixed)

    def of_layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, with room for the whole context."""
        layer = self._fixed[index]
        return layer.keys, layer.values
