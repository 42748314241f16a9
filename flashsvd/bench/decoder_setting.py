"""What all ways of decoding share in one point: the model, its factors, the prompts, and what they are judged by."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from flashsvd.bench.decode_reference import DecodeJudge, Standard, judged_rows, kind_of, standard_of
from flashsvd.bench.model_counts import kv_bytes
from flashsvd.decoding.runtime import Runtime
from flashsvd.devices import available_bytes
from flashsvd.engines.build import build, weight_bytes
from flashsvd.errors import OutOfMemoryError
from flashsvd.factors import Factors
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan


@dataclass(frozen=True, eq=False)
class Setting:
    """ids [B, T]: the prompts. new_tokens: that a cache has room for beside them. compile_backend: torch.compile's.
    standards: what the judge shows each kind of weights (`flashsvd.bench.decode_reference`), once they are made."""

    loaded: LoadedModel
    factors: Factors
    plan: RankPlan
    method: str
    ids: torch.Tensor
    new_tokens: int
    compile_backend: str
    standards: dict[str, Standard] = field(default_factory=dict)

    @functools.cached_property
    def lowrank(self) -> Any:
        """The low-rank engine, built once: it runs, is compiled, and judges the others."""
        return self.built("lowrank")

    @functools.cached_property
    def flash(self) -> Any:
        """The flash engine with a dense cache, built once."""
        return self.built("flash")

    def built(self, engine: str, **options: Any) -> Any:
        """An engine's model; see `flashsvd.engines.build.build`."""
        return build(self.loaded, engine, self.factors, self.plan, method=self.method, **options)

    @property
    def capacity(self) -> int:
        """Tokens that every cache has room for."""
        return self.ids.shape[1] + self.new_tokens

    @property
    def cache_bytes(self) -> int:
        """What a dense cache of that many takes."""
        return kv_bytes(self.plan, len(self.ids), self.capacity, self.loaded.model.dtype.itemsize)

    def runtime(self, model: Any, *, graph: bool) -> Runtime:
        """Our runtime of an engine's model."""
        shape, batch = self.plan.shape, len(self.ids)
        return Runtime(self.loaded, model, shape, batch=batch, context=self.capacity, graph=graph)

    def judge(self, engines: Iterable[str], steps: int) -> DecodeJudge:
        """Decodes in higher precision, `steps` tokens, with the weights of every engine; who is judged by that."""
        prompts = self.ids[judged_rows(len(self.ids))]
        for kind in dict.fromkeys(map(kind_of, engines)):
            model = self.loaded.model if kind == "dense" else self.lowrank
            self.standards[kind] = standard_of(kind, model, prompts, steps)
        dtype, layers = self.loaded.model.dtype, len(self.loaded.shape.layers)
        return DecodeJudge(self.standards, dtype, sublayers=2 * layers)

    def room(self, engines: Iterable[str]) -> int:
        """Bytes that are left for caches beside the weights, of which our engines may each make a copy of their own.

        Raises OutOfMemoryError where not even one cache fits.
        """
        copies = sum(2 * (factor.u.nbytes + factor.v.nbytes) for factor in self.factors.values())
        copies += weight_bytes(self.loaded.model) if "dense-graph" in engines else 0
        # A tenth for what reading the prompts keeps alive.
        room = available_bytes(self.loaded.device) * 9 // 10 - copies
        if room < self.cache_bytes:
            what = f"a cache of {len(self.ids)} x {self.capacity} tokens of {self.loaded.name}"
            raise OutOfMemoryError(what, self.cache_bytes, max(0, room))
        return room
