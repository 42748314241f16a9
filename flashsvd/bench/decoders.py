"""One face for everything that decodes: transformers' own models with their caches, and our runtime."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch

from flashsvd.bench.peaks import NoModel, peak_bytes
from flashsvd.decoding.runtime import Runtime
from flashsvd.measure.memory import allocator_peak_bytes

_CAPTURES = 4
"""Steps after which a compiled one is sure to be a replay: compiled, run once by hand, captured, replayed."""


class Decoder(Protocol):
    """What has a model and room for the keys and values of B sequences."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache as it is allocated."""
        ...

    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        """Forgets what was there and reads token ids [B, S]; returns the logits of the last, [B, V]."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads one more token of every sequence, [B], and returns its logits [B, V], which the next step may write
        over."""
        ...

    def rewind(self) -> None:
        """Forgets every step since `fill`, at next to no cost."""
        ...

    def peak_bytes(self, tokens: torch.Tensor) -> int | None:
        """The most that a step keeps alive beside weights and cache, None where it cannot be told. It runs steps."""
        ...


def last_tokens(ids: torch.Tensor) -> torch.Tensor:
    """The last token of ids [B, S], [B], in memory as tokens lie that were picked: code is compiled for strides, which
    `contiguous` leaves alone where B is 1."""
    return ids[:, -1].clone(memory_format=torch.contiguous_format)


class _Cached:
    """A model of transformers and its cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None
        self._filled = 0
        # What it is called differs between versions of transformers; the old name would break compiled graphs.
        named = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in named else "past_key_values"

    @property
    def kv_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers)

    def _logits(self, run: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
        """Of the last token of ids [B, S] that follow what is in the cache, [B, V]."""
        found: torch.Tensor = run(
            input_ids=ids, use_cache=True, logits_to_keep=1, **{self._name: self._cache}
        ).logits[:, -1]
        return found


class DynamicDecoder(_Cached):
    """transformers, eager, with the cache that `generate` uses if nothing is said: it grows by copying.

    run: what reads prompts in the model's place, such as the model compiled.
    """

    def __init__(self, model: Any, run: Callable[..., Any] | None = None) -> None:
        super().__init__(model)
        self._run = model if run is None else run

    @torch.no_grad()
    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        from transformers import DynamicCache

        # Let go first: two of the largest caches do not fit.
        self._cache = None
        self._cache = DynamicCache(config=self._model.config)
        self._filled = ids.shape[1]
        return self._logits(self._run, ids)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._logits(self._model, tokens[:, None])

    def rewind(self) -> None:
        for layer in self._cache.layers:
            # Past its window a layer has dropped what it would need; as many keys stay, which is what a step costs.
            if getattr(layer, "sliding_window", None) is None or self._filled < layer.sliding_window:
                layer.keys, layer.values = (
                    states[..., : self._filled, :] for states in (layer.keys, layer.values)
                )
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = self._filled

    def peak_bytes(self, tokens: torch.Tensor) -> int | None:
        """With the copy of one layer's keys and values that the cache grows by."""
        self.rewind()
        device, layers = tokens.device, len(self._cache.layers)
        peak = peak_bytes(NoModel(device), lambda: self.step(tokens), device)
        # A timeline does not see that the cache of before is let go, layer by layer.
        return peak if device.type == "cuda" else peak - self.kv_bytes * (layers - 1) // layers


class MicroDecoder:
    """transformers, eager, one sequence after another, each with a cache of its own."""

    def __init__(self, model: Any, batch: int) -> None:
        self._parts = [DynamicDecoder(model) for _ in range(batch)]

    @property
    def kv_bytes(self) -> int:
        return sum(part.kv_bytes for part in self._parts)

    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.fill(row) for part, row in zip(self._parts, ids.split(1), strict=True)])

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.step(token) for part, token in zip(self._parts, tokens.split(1), strict=True)])

    def rewind(self) -> None:
        for part in self._parts:
            part.rewind()

    def peak_bytes(self, tokens: torch.Tensor) -> int | None:
        return self._parts[0].peak_bytes(tokens[:1])


class StaticDecoder(_Cached):
    """transformers with a static cache, and every step one call of the compiled model, as `generate` has it with
    cache_implementation="static": mode "reduce-overhead", inductor's code in CUDA graphs. Prefill is eager, there and
    here. What `generate` does in Python around each step is left out, so this is the faster of the two.

    capacity: tokens that the cache holds.
    """

    def __init__(self, model: Any, capacity: int, backend: str) -> None:
        super().__init__(model)
        self._capacity = capacity
        self._backend = backend
        self._compiled = self._compile(whole=True)
        self._peak: int | None = None

    @torch.no_grad()
    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        from transformers import StaticCache

        if self._cache is None:
            self._cache = StaticCache(config=self._model.config, max_cache_len=self._capacity)
            self._read(ids)
            self._warm_up(last_tokens(ids))
        return self._read(ids)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._logits(self._compiled, tokens[:, None])
        except torch._dynamo.exc.Unsupported:
            # Raised while it is traced, before anything has run.
            self._compiled = self._compile(whole=False)
            return self._logits(self._compiled, tokens[:, None])

    def rewind(self) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._filled)
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = self._filled

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        # In place: what is compiled knows the cache by its addresses.
        self._cache.reset()
        self._filled = ids.shape[1]
        return self._logits(self._model, ids)

    def _warm_up(self, tokens: torch.Tensor) -> None:
        """Steps until all is compiled and captured; notes how much memory captures took, as replays take none."""
        self.step(tokens)
        for _ in range(_CAPTURES - 1 if tokens.device.type == "cuda" else 0):
            self.rewind()
            peak = allocator_peak_bytes(tokens.device, lambda: self.step(tokens))
            self._peak = max(self._peak or 0, peak)

    def peak_bytes(self, tokens: torch.Tensor) -> int | None:
        return self._peak

    def _compile(self, *, whole: bool) -> Callable[..., Any]:
        mode = "reduce-overhead" if self._backend == "inductor" else None
        compiled: Callable[..., Any] = torch.compile(
            self._model, backend=self._backend, fullgraph=whole, mode=mode
        )
        return compiled


class RuntimeDecoder:
    """Our runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._filled = 0

    @property
    def kv_bytes(self) -> int:
        return self.runtime.kv_bytes

    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        self._filled = ids.shape[1]
        return self.runtime.prefill(ids, None)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.runtime.step(tokens)

    def rewind(self) -> None:
        self.runtime.rewind(self._filled)

    def peak_bytes(self, tokens: torch.Tensor) -> int | None:
        """What the runtime holds for a step, which the allocator does not see again, and what it allocates in one."""
        self.rewind()
        device = tokens.device
        return self.runtime.workspace_bytes + peak_bytes(NoModel(device), lambda: self.step(tokens), device)
