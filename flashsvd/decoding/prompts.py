"""Reading prompts: a model's own forward over a fixed cache, replayed as a CUDA graph where the model streams."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.decoding.cache import FixedCache
from flashsvd.engines.capture import Captured, capture
from flashsvd.engines.causal import CausalAttention

BUCKET = 64
"""Lengths are rounded up to multiples of this, so that few graphs serve many prompts."""
KEPT_GRAPHS = 4
"""The lengths used last keep their graphs; they share one pool of memory."""


@dataclass(frozen=True, eq=False)
class _Bucket:
    """A forward over ids [B, bucket] that leaves the logits [B, V] fp32 of the tokens in column `last` [1]."""

    captured: Captured[torch.Tensor]
    ids: torch.Tensor
    last: torch.Tensor


class Prompts:
    """Reads prompts of a batch into a cache.

    A bucket of lengths that is asked for a second time is captured: what follows a prompt in its bucket is padding that
    causal attention does not see, and that later tokens write over. Seven billion parameters of Llama's shape at keep
    0.5 take some 1800 launches, for which a CPU needs longer than an H200 for 2048 tokens.
    """

    def __init__(self, model: Any, cache: FixedCache, context: int, *, graphed: bool) -> None:
        """graphed: whether to capture; only models of the flash engine are, whose forward waits for nothing."""
        self._model, self._cache, self._context = model, cache, context
        self._graphed = graphed and any(isinstance(module, CausalAttention) for module in model.modules())
        self._named = inspect.signature(model.forward).parameters
        self._seen: set[int] = set()
        self._graphs: OrderedDict[int, _Bucket] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self._graphed else None

    @property
    def graph_bytes(self) -> int:
        """What the largest captured forward takes beside weights, cache and prompts (`flashsvd.engines.capture`); the
        graphs hold on to it."""
        return max((kept.captured.peak_bytes for kept in self._graphs.values()), default=0)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Fills the cache from its first place with prompts ids [B, S]; the logits [B, V] fp32 of the last tokens."""
        seq = ids.shape[1]
        bucket = min(self._context, -(-seq // BUCKET) * BUCKET)
        if not self._graphed or bucket not in self._seen:
            self._seen.add(bucket)
            return self._forward(ids, 1)
        kept = self._graphs.get(bucket) or self._capture(ids, bucket)
        self._graphs[bucket] = kept
        self._graphs.move_to_end(bucket)
        while len(self._graphs) > KEPT_GRAPHS:
            self._graphs.popitem(last=False)
        kept.ids[:, :seq].copy_(ids)
        kept.last.fill_(seq - 1)
        kept.captured.graph.replay()
        self._cache.set_length(seq)
        return kept.captured.result.clone()

    def read_padded(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The same for prompts with padding on the left, where mask [B, S] is False."""
        given: dict[str, Any] = {"attention_mask": mask.long()}
        if "position_ids" in self._named:
            given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
        return self._forward(ids, 1, **given)

    def _forward(self, ids: torch.Tensor, keep: int | torch.Tensor, **given: Any) -> torch.Tensor:
        self._cache.set_length(0)
        given["cache" if "cache" in self._named else "past_key_values"] = self._cache
        found = self._model(input_ids=ids, use_cache=True, logits_to_keep=keep, **given)
        logits: torch.Tensor = found.logits[:, -1].float()
        return logits

    def _capture(self, ids: torch.Tensor, bucket: int) -> _Bucket:
        static = ids.new_zeros(len(ids), bucket)
        static[:, : ids.shape[1]] = ids
        last = torch.full((1,), ids.shape[1] - 1, device=ids.device)
        return _Bucket(capture(lambda: self._forward(static, last), ids.device, self._pool), static, last)
