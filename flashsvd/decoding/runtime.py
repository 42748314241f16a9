"""Prefill, then one token after another: a model, room for its keys and values, and a step that allocates nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from flashsvd.decoding.cache import CacheWidths, FixedCache
from flashsvd.decoding.layers import read_model
from flashsvd.decoding.prompts import Prompts
from flashsvd.decoding.sampling import Sampling, pick
from flashsvd.decoding.steps import decode_step
from flashsvd.devices import available_bytes
from flashsvd.engines.build import memory_bytes
from flashsvd.engines.decoder import prefill_words
from flashsvd.engines.sublayer import tensors_of
from flashsvd.errors import DeviceError, InputError, OutOfMemoryError
from flashsvd.kernels.step import MOST_ROWS, prepare_step
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape

OnToken = Callable[[list[int]], None]
"""Told the next token of every sequence, in order."""


@dataclass(frozen=True)
class Generated:
    """What was written: tokens [B, n] of every sequence, on the CPU; milliseconds to the first, with prefill, and of
    each after it."""

    tokens: torch.Tensor
    first_ms: float
    step_ms: tuple[float, ...]


class Runtime:
    """Decodes `batch` sequences side by side, `context` tokens each at most.

    Prefill runs the model's own forward over a fixed cache. A step is a program (`flashsvd.kernels.step`) that was made
    of the model's weights once: on a GPU a chain of kernels, captured as one CUDA graph; elsewhere plain torch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        model: Any,
        shape: ModelShape,
        *,
        batch: int,
        context: int,
        graph: bool | Literal["auto"] = "auto",
        backend: str | None = None,
    ) -> None:
        """loaded: the dense model's description; model: what `flashsvd.engines.build.build` made, or the dense model
        itself; shape: the plan's, or loaded's for the dense model. graph: "auto" captures steps where there is a GPU.

        Raises:
            InputError: batch or context out of range.
            ModelError: no decoder, or a variant of one that no step is written for.
            DeviceError: graph=True without a GPU.
            OutOfMemoryError: keys and values do not fit; it says how many tokens would.
        """
        self._device = model.device
        on_gpu = self._device.type == "cuda"
        if graph is True and not on_gpu:
            raise DeviceError(f"graph=True needs a model on a CUDA device, got {self._device}; leave it out")
        _check_sizes(batch, context, loaded, on_gpu)
        self.batch, self.context = batch, context
        self._model, self._graphed = model, on_gpu and bool(graph)
        decoder = read_model(model, loaded.family, shape)
        sides = ((layer.attention.k, layer.attention.v) for layer in decoder.layers)
        widths = [CacheWidths(k.heads, k.width, v.width) for k, v in sides]
        _check_fits(loaded.name, widths, batch, context, decoder.embedding)
        self._cache = FixedCache(widths, batch, context, decoder.embedding)
        self._prompts = Prompts(model, self._cache, context, graphed=self._graphed)
        turns = None if loaded.family.rotary is None else _turns(model, context, shape.head_dim)
        self._packed = tuple(
            tensors_of(tuple((layer.attention, layer.feed_forward) for layer in decoder.layers))
        )
        self._step = decode_step(decoder, self._cache, batch, turns)
        self._run = prepare_step(self._step.program, backend)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._least, self._prompt = 1, context

    @property
    def kv_bytes(self) -> int:
        """Of keys and values for the whole context, allocated once."""
        return self._cache.nbytes

    @property
    def weight_bytes(self) -> int:
        """Of the model as it runs: its parameters, and what steps read beside them, as padded ranks."""
        return memory_bytes((*self._model.parameters(), *self._model.buffers(), *self._packed))

    @property
    def workspace_bytes(self) -> int:
        """Of what a step computes in, allocated once."""
        return self._step.workspace_bytes + int(getattr(self._run, "workspace_bytes", 0))

    @property
    def prompt_bytes(self) -> int:
        """Of what graphs of prompts compute in, which they hold on to."""
        return self._prompts.graph_bytes

    @property
    def launches(self) -> int | None:
        """Kernels of a step, all of them in one graph where steps are captured; None without a GPU."""
        count = getattr(self._run, "launches", None)
        return None if count is None or self._device.type != "cuda" else int(count)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Forgets what was there and reads prompts.

        ids [B, S]; mask bool [B, S], False for padding on the left, or None. Returns the logits of the last token,
        [B, V] fp32. Raises InputError for prompts that do not fit.
        """
        self._check_prompt(ids, mask)
        self._prompt, self._least = ids.shape[1], 1
        if mask is None or bool(mask.all()):
            self._step.first.zero_()
            logits = self._prompts.read(ids)
        else:
            first = (~mask).sum(1).to(torch.int32)
            self._least += int(first.max())
            self._step.first.copy_(first)
            logits = self._prompts.read_padded(ids, mask)
        self._step.place.fill_(self.length)
        return logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads one more token of every sequence, [B], and returns its logits, [B, V] fp32, which the next step writes
        over. Raises InputError when the context is full."""
        if self.length >= self.context:
            raise InputError(
                f"the context of {self.context} tokens is full: make the runtime with a larger one"
            )
        self._step.tokens.copy_(tokens)
        if self._graphed:
            self._replay()
        else:
            self._once()
        self._cache.set_length(self.length + 1)
        return self._step.logits

    def rewind(self, tokens: int) -> None:
        """Goes back to the first `tokens` tokens; nothing is copied.

        Raises InputError for more than there are, or so few that all of a prompt would be padding.
        """
        if not self._least <= tokens <= self.length:
            raise InputError(f"rewind takes {self._least} to {self.length} tokens, got {tokens}")
        self._cache.set_length(tokens)
        self._step.place.fill_(tokens)

    def generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        on_token: OnToken | None = None,
    ) -> Generated:
        """Writes on after prompts: ids and mask as for `prefill`.

        The device never waits for the host: while a step runs, the tokens of the one before are given to `on_token`,
        which may raise to end it.

        Raises InputError where prompt and new tokens are more than the context holds.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self._check_prompt(ids, mask)
        if ids.shape[1] + max_new_tokens > self.context:
            raise InputError(
                f"{ids.shape[1]} tokens and {max_new_tokens} new ones are more than the context of {self.context}: "
                f"at most {max(0, self.context - ids.shape[1])} new ones fit"
            )
        sampling = sampling or Sampling()
        generator = None if sampling.greedy else torch.Generator(self._device).manual_seed(sampling.seed)
        started = time.perf_counter()
        tokens = pick(self.prefill(ids, mask), sampling, generator)
        written, times = [], []
        for index in range(max_new_tokens):
            found = _on_its_way(tokens)
            if index + 1 < max_new_tokens:
                tokens = pick(self.step(tokens), sampling, generator)
            row = found()
            times.append(time.perf_counter())
            written.append(row)
            if on_token is not None:
                on_token(row)
        steps = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
        return Generated(torch.tensor(written).T.contiguous(), (times[0] - started) * 1e3, tuple(steps))

    @property
    def plan(self) -> str:
        """What prefill does about the heads of q, k and v, in words: of the last prompt, and before there was one of a
        full context."""
        return prefill_words(self._model, self.batch, self._prompt)

    def _once(self) -> None:
        self._run()
        self._step.place.add_(1)

    def _replay(self) -> None:
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()

    def _capture(self) -> None:
        """Captures a step; the ones that warm it up write where the captured one will, and are undone."""
        place = int(self._step.place)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._once()
                self._step.place.fill_(place)
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):
            self._once()

    def _check_prompt(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        if ids.dim() != 2 or ids.shape[0] != self.batch or ids.shape[1] == 0:
            raise InputError(
                f"prompts must be [{self.batch}, tokens], at least one token, got {list(ids.shape)}"
            )
        if ids.shape[1] > self.context:
            raise InputError(
                f"a prompt of {ids.shape[1]} tokens is longer than the context of {self.context}: shorten it"
            )
        if mask is None:
            return
        if mask.shape != ids.shape or mask.dtype != torch.bool:
            raise InputError(f"the mask must be bool {list(ids.shape)}, got {mask.dtype} {list(mask.shape)}")
        if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise InputError("padding must be on the left: every prompt ends in the last column")


def _check_sizes(batch: int, context: int, loaded: LoadedModel, on_gpu: bool) -> None:
    if batch < 1 or context < 1:
        raise InputError(f"batch and context must be at least 1, got {batch} and {context}")
    if on_gpu and batch > MOST_ROWS:
        raise InputError(f"batch must be at most {MOST_ROWS}, got {batch}: write in several batches")
    most = loaded.shape.max_positions
    if context > most:
        raise InputError(f"the context of {loaded.name} is {most} tokens, got {context}")


def _check_fits(
    name: str, widths: Sequence[CacheWidths], batch: int, context: int, like: torch.Tensor
) -> None:
    size = like.element_size()
    needed = sum(width.nbytes(batch, context, size) for width in widths)
    free = available_bytes(like.device)
    if needed > free:
        fits = free // sum(width.nbytes(batch, 1, size) for width in widths)
        what = f"a cache of {context} tokens for {batch} sequences of {name} ({fits} tokens would fit)"
        raise OutOfMemoryError(what, needed, free)


@torch.no_grad()
def _turns(model: Any, context: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, fp32 [context, head dim], as the model itself makes them."""
    places = torch.arange(context, device=model.device)[None]
    cos, sin = model.base_model.rotary_emb(torch.zeros(1, 1, head_dim, device=model.device), places)
    return cos[0].float().contiguous(), sin[0].float().contiguous()


def _on_its_way(tokens: torch.Tensor) -> Callable[[], list[int]]:
    """Starts the copy of tokens [B] to the host; the call waits for it, and for nothing that was started later."""
    if not tokens.is_cuda:
        return tokens.tolist
    there = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    there.copy_(tokens, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def found() -> list[int]:
        done.synchronize()
        values: list[int] = there.tolist()
        return values

    return found
