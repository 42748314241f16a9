"""The ways of running an encoder, one entry each. A new engine is one function and one line of the table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from flashsvd.bench.chunked import CHUNK_TOKENS, MICRO_BATCH, can_chunk, chunked_feed_forward, micro_batched
from flashsvd.bench.contest import Contestant, Prepared
from flashsvd.bench.counts import Work
from flashsvd.bench.model_counts import dense_work, flash_work, lowrank_work, rebuilding_work
from flashsvd.bench.peaks import engine_peak_bytes
from flashsvd.engines.build import build, weight_bytes
from flashsvd.factors import Factors
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan


@dataclass(frozen=True, eq=False)
class Setting:
    """What all contestants of a point share. `loaded.model` is the encoder without its head; ids [B, S]."""

    loaded: LoadedModel
    factors: Factors
    plan: RankPlan
    method: str
    ids: torch.Tensor
    compile_backend: str

    @functools.cached_property
    def lowrank(self) -> Any:
        """The low-rank engine, built once: it runs, is compiled, and judges the others."""
        return self.built("lowrank")

    def built(self, engine: str, **options: Any) -> Any:
        """An engine's model; see `flashsvd.engines.build.build`."""
        return build(self.loaded, engine, self.factors, self.plan, method=self.method, **options)

    def work(self, count: Callable[[LoadedModel, RankPlan, int, int], Work]) -> Work:
        """A count of `flashsvd.bench.model_counts` for this point."""
        return count(self.loaded, self.plan, *self.ids.shape)


def states(output: Any) -> torch.Tensor:
    """The last hidden states [B, S, d] of an encoder's output."""
    found: torch.Tensor = output["last_hidden_state"]
    return found


def _dense(setting: Setting) -> Contestant:
    return Contestant(
        "transformers' own, eager, SDPA",
        setting.work(dense_work),
        lambda: _prepared("dense", setting, setting.loaded.model),
    )


def _dense_compile(setting: Setting) -> Contestant:
    return Contestant(
        f"dense under torch.compile, {_compiled_how(setting)}",
        setting.work(dense_work),
        lambda: _prepared("dense-compile", setting, setting.loaded.model, _compiled),
    )


def _dense_micro(setting: Setting) -> Contestant:
    batches = -(-len(setting.ids) // MICRO_BATCH)
    return Contestant(
        f"dense, {MICRO_BATCH} sequences at a time, outputs joined",
        setting.work(dense_work).rereading_weights(batches),
        lambda: _prepared("dense-micro8", setting, setting.loaded.model, _micro),
    )


def _dense_chunked(setting: Setting) -> Contestant:
    loaded = setting.loaded
    known = can_chunk(loaded.model, loaded.family, loaded.shape)
    return Contestant(
        f"dense, feed-forward over chunks of {CHUNK_TOKENS} tokens",
        setting.work(dense_work),
        lambda: _prepared(
            "dense-chunked-ffn", setting, chunked_feed_forward(loaded.model, loaded.family, loaded.shape)
        ),
        left_out=None if known else f"not available for {loaded.family.title}",
    )


def _lowrank(setting: Setting) -> Contestant:
    return Contestant(
        "two linears per factored one, everything materialised",
        setting.work(lowrank_work),
        lambda: _prepared("lowrank", setting, setting.lowrank),
    )


def _lowrank_compile(setting: Setting) -> Contestant:
    return Contestant(
        f"low-rank under torch.compile, {_compiled_how(setting)}",
        setting.work(lowrank_work),
        lambda: _prepared("lowrank-compile", setting, setting.lowrank, _compiled),
    )


def _flash(setting: Setting) -> Contestant:
    return Contestant(
        "streamed through our kernels",
        setting.work(flash_work),
        lambda: _prepared("flash", setting, setting.built("flash")),
    )


def _flash_rebuild(setting: Setting) -> Contestant:
    return Contestant(
        "q, k and v rebuilt on chip, as in arXiv 2508.01506",
        setting.work(rebuilding_work),
        lambda: _prepared("flash-rebuild", setting, setting.built("flash", rebuild=True)),
    )


def _flash_graph(setting: Setting) -> Contestant:
    cuda = setting.loaded.device.type == "cuda"
    return Contestant(
        "flash as a CUDA graph; its output lives in the graph's memory",
        setting.work(flash_work),
        lambda: _prepared("flash-graph", setting, setting.built("flash", graph="static")),
        left_out=None if cuda else "CUDA graphs need a GPU",
    )


CONTESTANTS: Mapping[str, Callable[[Setting], Contestant]] = MappingProxyType(
    {
        "dense": _dense,
        "dense-compile": _dense_compile,
        "dense-micro8": _dense_micro,
        "dense-chunked-ffn": _dense_chunked,
        "lowrank": _lowrank,
        "lowrank-compile": _lowrank_compile,
        "flash-rebuild": _flash_rebuild,
        "flash": _flash,
        "flash-graph": _flash_graph,
    }
)
"""Every way of running an encoder, by the name of its row. `dense...` rows are judged against the dense model,
all others against the low-rank one."""


def _plain(setting: Setting, model: Any) -> Callable[[], Any]:
    return lambda: model(setting.ids)


def _compiled(setting: Setting, model: Any) -> Callable[[], Any]:
    # Never dynamic shapes: they are torch's answer to a second shape, and slower than the first was.
    run = torch.compile(model, backend=setting.compile_backend, dynamic=False)
    return lambda: run(setting.ids)


def _micro(setting: Setting, model: Any) -> Callable[[], Any]:
    return lambda: micro_batched(model, setting.ids)


def _prepared(
    name: str,
    setting: Setting,
    model: Any,
    how: Callable[[Setting, Any], Callable[[], Any]] = _plain,
) -> Prepared:
    call = torch.inference_mode()(how(setting, model))
    return Prepared(
        call=call,
        checked=states,
        peak=lambda: engine_peak_bytes(name, model, call, setting.loaded.device),
        weight_bytes=weight_bytes(model),
    )


def _compiled_how(setting: Setting) -> str:
    if setting.compile_backend == "inductor":
        return "default mode (inductor, no CUDA graphs)"
    return f"backend {setting.compile_backend}"
