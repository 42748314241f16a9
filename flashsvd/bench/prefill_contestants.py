"""The ways of reading prompts, one entry each. A new one is one function and one line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from flashsvd.bench.contest import Contestant, Prepared
from flashsvd.bench.counts import Work
from flashsvd.bench.decode_reference import judged_logits, kind_of
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.decoders import Decoder, DynamicDecoder, MicroDecoder, RuntimeDecoder
from flashsvd.bench.model_counts import dense_work, flash_work, last_token_work, lowrank_work
from flashsvd.bench.peaks import NoModel, peak_bytes
from flashsvd.engines.build import weight_bytes
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan


def _dense(setting: Setting) -> Contestant:
    return Contestant(
        "transformers' own, eager, SDPA",
        _work(setting, dense_work),
        lambda: _eager("dense", setting, setting.loaded.model),
    )


def _dense_compile(setting: Setting) -> Contestant:
    return Contestant(
        f"dense under torch.compile, {_compiled_how(setting)}",
        _work(setting, dense_work),
        lambda: _compiled("dense-compile", setting, setting.loaded.model),
    )


def _dense_micro(setting: Setting) -> Contestant:
    batch = len(setting.ids)
    return Contestant(
        "dense, one sequence at a time",
        _work(setting, dense_work).rereading_weights(batch),
        lambda: _micro("dense-micro", setting, setting.loaded.model),
        left_out="a batch of one is a micro-batch" if batch == 1 else None,
    )


def _lowrank(setting: Setting) -> Contestant:
    return Contestant(
        "two linears per factored one, everything materialised",
        _work(setting, lowrank_work),
        lambda: _eager("lowrank", setting, setting.lowrank),
    )


def _lowrank_compile(setting: Setting) -> Contestant:
    return Contestant(
        f"low-rank under torch.compile, {_compiled_how(setting)}",
        _work(setting, lowrank_work),
        lambda: _compiled("lowrank-compile", setting, setting.lowrank),
    )


def _flash(setting: Setting) -> Contestant:
    return Contestant(
        "our runtime", _work(setting, flash_work), lambda: _running("flash", setting, setting.flash)
    )


def _flash_graph(setting: Setting) -> Contestant:
    on_gpu = setting.loaded.device.type == "cuda"
    return Contestant(
        "our runtime, prompts of one length as one CUDA graph",
        _work(setting, flash_work),
        lambda: _graphed("flash-graph", setting, setting.flash),
        left_out=None if on_gpu else "CUDA graphs need a GPU",
    )


CONTESTANTS: Mapping[str, Callable[[Setting], Contestant]] = MappingProxyType(
    {
        "dense": _dense,
        "dense-compile": _dense_compile,
        "dense-micro": _dense_micro,
        "lowrank": _lowrank,
        "lowrank-compile": _lowrank_compile,
        "flash": _flash,
        "flash-graph": _flash_graph,
    }
)
"""Every way of reading prompts, by the name of its row."""


def _work(setting: Setting, count: Callable[[LoadedModel, RankPlan, int, int], Work]) -> Work:
    batch, seq = setting.ids.shape
    return count(setting.loaded, setting.plan, batch, seq) + last_token_work(setting.loaded, batch)


def _compiled_how(setting: Setting) -> str:
    if setting.compile_backend == "inductor":
        return "default mode (inductor, no CUDA graphs)"
    return f"backend {setting.compile_backend}"


def _eager(name: str, setting: Setting, model: Any) -> Prepared:
    return _prepared(name, setting, DynamicDecoder(model), weight_bytes(model), _uncached(model, setting.ids))


def _micro(name: str, setting: Setting, model: Any) -> Prepared:
    decoder = MicroDecoder(model, len(setting.ids))
    # One after another they keep alive what one does, and the logits of those before.
    return _prepared(name, setting, decoder, weight_bytes(model), _uncached(model, setting.ids[:1]))


def _compiled(name: str, setting: Setting, model: Any) -> Prepared:
    run = torch.compile(model, backend=setting.compile_backend, dynamic=False)
    decoder = DynamicDecoder(model, run)
    # Another forward, without a cache, would be compiled for minutes. A fill lets the cache before go first, so that
    # its peak has the new one in the place of the old; what a CPU's compiled code allocates cannot be followed.
    peak = (lambda: decoder.fill(setting.ids)) if setting.loaded.device.type == "cuda" else None
    return _prepared(name, setting, decoder, weight_bytes(model), peak)


def _running(name: str, setting: Setting, model: Any) -> Prepared:
    runtime = setting.runtime(model, graph=False)
    decoder = RuntimeDecoder(runtime)
    return _prepared(name, setting, decoder, runtime.weight_bytes, lambda: decoder.fill(setting.ids))


def _graphed(name: str, setting: Setting, model: Any) -> Prepared:
    runtime = setting.runtime(model, graph=True)
    decoder = RuntimeDecoder(runtime)
    for _ in range(2):
        decoder.fill(setting.ids)
    prepared = _prepared(name, setting, decoder, runtime.weight_bytes, None)
    # A replay allocates nothing but its logits.
    return replace(prepared, peak=lambda: runtime.prompt_bytes)


def _uncached(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    """A forward that keeps no keys and values, so that its peak is that of activations."""

    @torch.no_grad()
    def forward() -> object:
        return model(input_ids=ids, use_cache=False, logits_to_keep=1)

    return forward


def _prepared(
    name: str, setting: Setting, decoder: Decoder, weights: int, measured: Callable[[], object] | None
) -> Prepared:
    """What is timed fills a cache and gives the logits of the last token; what is judged are these and those of a step
    that reads the cache. measured: the call whose peak counts, None where it cannot be told."""
    device = setting.loaded.device
    return Prepared(
        call=lambda: decoder.fill(setting.ids),
        checked=lambda _: judged_logits(decoder, setting.ids, setting.standards[kind_of(name)]),
        peak=lambda: None if measured is None else peak_bytes(NoModel(device), measured, device),
        weight_bytes=weights,
        more=lambda: {"kv_bytes": decoder.kv_bytes},
    )
