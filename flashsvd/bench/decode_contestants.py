"""The ways of decoding, one entry each. A new one is one function and one line of the table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from flashsvd.bench.contest import Contestant, Prepared
from flashsvd.bench.counts import Work
from flashsvd.bench.decode_reference import judged_logits, judged_rows, kind_of, shown_tokens
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.decoders import Decoder, DynamicDecoder, RuntimeDecoder, StaticDecoder, last_tokens
from flashsvd.bench.generating import StaticGenerate
from flashsvd.bench.launches import count_launches
from flashsvd.bench.model_counts import step_work
from flashsvd.decoding.layers import read_model
from flashsvd.engines.build import weight_bytes
from flashsvd.errors import FlashSVDError
from flashsvd.ranks import RankPlan


def _dense(setting: Setting) -> Contestant:
    return Contestant(
        "transformers' own, eager, growing cache",
        _dense_work(setting),
        lambda: _eager("dense", setting, setting.loaded.model),
    )


def _dense_static(setting: Setting) -> Contestant:
    return Contestant(
        f"dense with a static cache, every step under torch.compile, {_compiled_how(setting)}",
        _dense_work(setting),
        lambda: _static("dense-static-compile", setting, setting.loaded.model),
    )


def _dense_generate(setting: Setting) -> Contestant:
    return Contestant(
        "transformers' generate() with a static cache, which compiles where there is a GPU",
        _dense_work(setting),
        lambda: _generate(setting, setting.loaded.model),
    )


def _dense_graph(setting: Setting) -> Contestant:
    left_out = _no_graphs(setting)
    if left_out is None:
        # Packs the dense weights before any row has captured a graph that knows where they are. What it cannot read
        # the row itself will say.
        with contextlib.suppress(FlashSVDError):
            read_model(setting.loaded.model, setting.loaded.family, setting.loaded.shape)
    return Contestant(
        "the dense weights in our runtime, a step as one CUDA graph",
        _dense_work(setting),
        lambda: _running("dense-graph", setting, setting.loaded.model, graph=True),
        left_out=left_out,
    )


def _lowrank(setting: Setting) -> Contestant:
    return Contestant(
        "two linears per factored one, eager, growing cache",
        _work(setting),
        lambda: _eager("lowrank", setting, setting.lowrank),
    )


def _lowrank_static(setting: Setting) -> Contestant:
    return Contestant(
        f"low-rank with a static cache, every step under torch.compile, {_compiled_how(setting)}",
        _work(setting),
        lambda: _static("lowrank-static-compile", setting, setting.lowrank),
    )


def _flash(setting: Setting) -> Contestant:
    return Contestant(
        "our runtime",
        _work(setting),
        lambda: _running("flash", setting, setting.flash, graph=False),
    )


def _flash_graph(setting: Setting) -> Contestant:
    return Contestant(
        "our runtime, a step as one CUDA graph",
        _work(setting),
        lambda: _running("flash-graph", setting, setting.flash, graph=True),
        left_out=_no_graphs(setting),
    )


def _flash_generate(setting: Setting) -> Contestant:
    return Contestant(
        "our runtime's generate()",
        _work(setting),
        lambda: _runtime_generate(setting, setting.flash),
        left_out="of one new token there is no time from one to the next"
        if setting.new_tokens == 1
        else None,
    )


def _flash_graph_rank(setting: Setting) -> Contestant:
    return Contestant(
        "our runtime, a step as one CUDA graph, cache in rank space",
        _work(setting),
        lambda: _rank_cached("flash-graph-rank", setting),
        left_out=_no_graphs(setting),
    )


CONTESTANTS: Mapping[str, Callable[[Setting], Contestant]] = MappingProxyType(
    {
        "dense": _dense,
        "dense-static-compile": _dense_static,
        "dense-generate": _dense_generate,
        "dense-graph": _dense_graph,
        "lowrank": _lowrank,
        "lowrank-static-compile": _lowrank_static,
        "flash": _flash,
        "flash-graph": _flash_graph,
        "flash-graph-rank": _flash_graph_rank,
        "flash-generate": _flash_generate,
    }
)
"""Every way of decoding, by the name of its row."""


def _work(setting: Setting) -> Work:
    return step_work(setting.loaded, setting.plan, *setting.ids.shape)


def _dense_work(setting: Setting) -> Work:
    return step_work(setting.loaded, RankPlan.dense(setting.plan.shape), *setting.ids.shape)


def _no_graphs(setting: Setting) -> str | None:
    return None if setting.loaded.device.type == "cuda" else "CUDA graphs need a GPU"


def _compiled_how(setting: Setting) -> str:
    if setting.compile_backend == "inductor":
        return "mode reduce-overhead"
    return f"backend {setting.compile_backend}"


def _static(name: str, setting: Setting, model: Any) -> Prepared:
    decoder = StaticDecoder(model, setting.capacity, setting.compile_backend)
    return _prepared(name, setting, decoder, weight_bytes(model))


def _running(name: str, setting: Setting, model: Any, *, graph: bool) -> Prepared:
    runtime = setting.runtime(model, graph=graph)
    return _prepared(name, setting, RuntimeDecoder(runtime), runtime.weight_bytes)


def _rank_cached(name: str, setting: Setting) -> Prepared:
    runtime = setting.runtime(setting.built("flash", cache="rank"), graph=True)
    prepared = _prepared(name, setting, RuntimeDecoder(runtime), runtime.weight_bytes)
    # Which layers keep what in rank space is for the engine to choose.
    read = runtime.kv_bytes * setting.ids.shape[1] // setting.capacity
    return replace(prepared, work=replace(_work(setting), activation_bytes=read))


def _generate(setting: Setting, model: Any) -> Prepared:
    """What is timed is every token but the first, on the host's clock."""
    static, rows = StaticGenerate(model, setting.new_tokens), judged_rows(len(setting.ids))
    shown = shown_tokens(setting.ids, setting.standards["dense"])
    told: list[list[float]] = []
    held: list[int] = []

    def judged(_: object) -> torch.Tensor:
        logits, cache_bytes = static.logits(setting.ids, shown)
        held.append(cache_bytes)
        return logits[:, rows]

    return Prepared(
        call=lambda: told.append(static.write(setting.ids)),
        checked=judged,
        peak=lambda: None,
        weight_bytes=weight_bytes(model),
        more=lambda: {"kv_bytes": held[-1]},
        told=told,
    )


def _runtime_generate(setting: Setting, model: Any) -> Prepared:
    runtime = setting.runtime(model, graph=setting.loaded.device.type == "cuda")
    told: list[list[float]] = []

    def write() -> None:
        told.append(list(runtime.generate(setting.ids, max_new_tokens=setting.new_tokens).step_ms))

    prepared = _prepared("flash-generate", setting, RuntimeDecoder(runtime), runtime.weight_bytes)
    return replace(prepared, call=write, before=None, told=told)


def _eager(name: str, setting: Setting, model: Any) -> Prepared:
    return _prepared(name, setting, DynamicDecoder(model), weight_bytes(model))


def _prepared(name: str, setting: Setting, decoder: Decoder, weights: int) -> Prepared:
    """What is timed is a block of greedy tokens after the context: a step and the choice from its logits, over and
    over, nothing waited for. What is judged are steps that are shown the reference's tokens."""
    device, last = setting.loaded.device, last_tokens(setting.ids)
    decoder.fill(setting.ids)

    @torch.no_grad()
    def block() -> torch.Tensor:
        tokens = last
        for _ in range(setting.new_tokens):
            tokens = decoder.step(tokens).argmax(-1)
        return tokens

    def more() -> dict[str, Any]:
        decoder.rewind()
        launches = count_launches(lambda: decoder.step(last), device)
        return {
            "kv_bytes": decoder.kv_bytes,
            "kernels": launches and launches.kernels,
            "launches": launches and launches.launches,
        }

    return Prepared(
        call=block,
        checked=lambda _: judged_logits(decoder, setting.ids, setting.standards[kind_of(name)]),
        peak=lambda: decoder.peak_bytes(last),
        weight_bytes=weights,
        before=decoder.rewind,
        more=more,
    )
