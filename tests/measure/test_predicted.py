"""Predicted timelines against measured ones, row by row."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import pytest
import torch

from flashsvd.compare import _call as timed_call
from flashsvd.data import timing_ids
from flashsvd.engines.build import build, weight_bytes
from flashsvd.errors import Cancelled, InputError, ModelError, PlanError
from flashsvd.factors import factorise
from flashsvd.measure import memory, predicted_run
from flashsvd.measure.memory import peak_activation_bytes, record_timeline
from flashsvd.measure.predicted import Prediction, PredictRequest
from flashsvd.measure.predicted_run import predict, repeated
from flashsvd.measure.predicted_tiles import tiles_told
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.results import PlanChoice
from flashsvd.spectra import compute

EXACT = ["event", "op", "module", "layer", "category", "bytes", "live_bytes"]
KEEP = PlanChoice(keep=0.5)
BATCH, SEQ = 3, 48


@functools.cache
def measured(model: str, engine: str, choice: PlanChoice = KEEP, per_head: bool = True) -> pd.DataFrame:
    loaded = load(model, per_head=per_head)
    plan = choice.resolve(loaded.shape)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan) if engine != "dense" else None
    built = build(loaded, engine, factors, plan)
    forward = timed_call(built, timing_ids(loaded, BATCH, SEQ, 0))
    forward()
    frame = record_timeline(built, loaded.family.layers(built.base_model), forward)
    assert frame["bytes"].iloc[0] == weight_bytes(built)
    return frame


def predicted(model: str, engine: str, **options: Any) -> Prediction:
    every_layer = options.pop("every_layer", False)
    request = PredictRequest(
        model, **{"choice": KEEP, "batch": BATCH, "seq": SEQ, **options}, engines=(engine,)
    )
    return predict(request, every_layer=every_layer)


def same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return len(a) == len(b) and all(a[name].tolist() == b[name].tolist() for name in EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dense", "lowrank", "flash"])
@pytest.mark.parametrize("model", ["stdlib-bert", "stdlib-llama"])
def test_equals_the_measured_run_event_for_event(
    model: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted_run, "tiles_told", functools.partial(tiles_told, 10**9, 10**9))
    frame = predicted(model, engine).runs[0].timeline
    real = measured(model, engine)
    assert same(frame, real)
    assert peak_activation_bytes(frame) == pytest.approx(peak_activation_bytes(real), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "per_head"),
    [
        (PlanChoice(keep=0.5), False),
        # Ranks that are padded, that differ from head to head, and dense units among them.
        (PlanChoice(text="*.q: 13 *.k: 21 *.v: 16 *.o: 60 L2.q.h2: dense L3.*: dense"), True),
    ],
)
def test_weights_that_share_memory_count_once(choice: PlanChoice, per_head: bool) -> None:
    for model in ("stdlib-bert", "stdlib-llama"):
        run = predicted(model, "flash", choice=choice, per_head=per_head).runs[0]
        assert run.weight_bytes == measured(model, "flash", choice, per_head)["bytes"].iloc[0], model


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stdlib-bert", "stdlib-llama"])
def test_streams_told_in_a_few_rows_have_the_measured_peak(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted_run, "tiles_told", functools.partial(tiles_told, 1, 1))
    frame, real = predicted(model, "flash").runs[0].timeline, measured(model, "flash")
    assert len(frame) < len(real) or model == "stdlib-llama"
    assert peak_activation_bytes(frame) == pytest.approx(peak_activation_bytes(real), rel=0.01)


@pytest.mark.parametrize(
    ("model", "engine", "cached"),
    [
        ("stdlib-bert", "dense", False),
        ("stdlib-bert", "flash", False),
        ("stdlib-llama", "dense", True),
        ("stdlib-llama", "flash", True),
    ],
)
def test_repeated_layers_are_the_layers(model: str, engine: str, cached: bool) -> None:
    few, all_layers = (predicted(model, engine, cached=cached, every_layer=every) for every in (False, True))
    assert few.runs[0].computed_layers == 3 < few.runs[0].layers == all_layers.runs[0].computed_layers
    assert same(few.runs[0].timeline, all_layers.runs[0].timeline)
    assert few.runs[0].weight_bytes == all_layers.runs[0].weight_bytes
    assert few.model == all_layers.model and few.model.parameters == load(model).parameters


def test_layers_that_differ_are_all_run() -> None:
    run = predicted("stdlib-bert", "lowrank", choice=PlanChoice(text="*.up: 40 L3.up: dense")).runs[0]
    # One and two, the third, and the first, middle and last of the others.
    assert run.computed_layers == 6


def test_a_kept_cache_is_a_category_of_its_own() -> None:
    frame = predicted("stdlib-llama", "dense", cached=True).runs[0].timeline
    shape = load("stdlib-llama").shape
    kept = frame.loc[(frame["category"] == "kv cache") & (frame["bytes"] > 0), "bytes"].sum()
    assert kept == 2 * len(shape.layers) * BATCH * SEQ * shape.kv_heads * shape.head_dim * 4
    assert frame["bytes"].iloc[1:].sum() == 0


def test_forgotten_deaths_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measured("stdlib-bert", "dense")
    monkeypatch.setattr(memory.Recorder, "bury", lambda self: None)
    frame = predicted("stdlib-bert", "dense").runs[0].timeline
    assert not same(frame, real)
    assert peak_activation_bytes(frame) > 1.01 * peak_activation_bytes(real)


def test_a_repeat_that_is_left_out_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(rows: pd.DataFrame, stretches: list[Any], path: str) -> pd.DataFrame:
        return repeated(rows, stretches, path).query("layer != 2")

    monkeypatch.setattr(predicted_run, "repeated", short)
    assert not same(predicted("stdlib-bert", "dense").runs[0].timeline, measured("stdlib-bert", "dense"))


def test_llama_2_70b_on_paper() -> None:
    found = predicted("llama-2-70b", "dense", dtype="bf16", batch=64, seq=4096, cached=True)
    # Touvron et al. 2023: 68.98e9 parameters, 8 kv heads of 128 columns in 80 layers.
    assert found.model.parameters == pytest.approx(68.98e9, rel=1e-4)
    # The parameters, and the rotary frequencies.
    assert found.runs[0].weight_bytes == pytest.approx(2 * found.model.parameters, rel=1e-6)
    frame = found.runs[0].timeline
    kept = frame.loc[(frame["category"] == "kv cache") & (frame["bytes"] > 0), "bytes"].sum()
    assert kept == 80 * 2 * 64 * 4096 * 8 * 128 * 2
    assert found.runs[0].computed_layers == 3


def test_nothing_is_left_patched() -> None:
    predicted("stdlib-bert", "flash")
    x = torch.ones(3)
    assert type(x + 1) is torch.Tensor and (x + 1).data_ptr() != 0 and bool((x == 1).all())


def test_says_where_modules_are_written() -> None:
    sources = predicted("stdlib-bert", "flash").runs[0].sources
    assert sources["bert.encoder.layer.*.flash_attention"].startswith(
        "RankSpaceAttention · flashsvd/engines/"
    )
    assert sources["bert.embeddings"].startswith(
        "BertEmbeddings · transformers/models/bert/modeling_bert.py:"
    )


def test_what_cannot_be_predicted_is_said() -> None:
    with pytest.raises(ModelError, match="configuration of no/such is not on this machine"):
        predicted("no/such", "dense")
    with pytest.raises(InputError, match="engine must be one of"):
        predicted("stdlib-bert", "none")
    with pytest.raises(InputError, match="seq must be from 1 to"):
        predicted("stdlib-bert", "dense", seq=10**6)
    with pytest.raises(PlanError):
        predicted("stdlib-bert", "dense", choice=PlanChoice(text="L99.q: 3"))
    # What a family cannot stream is left out, in words.
    found = predicted("modernbert-base", "flash", per_head=False)
    assert not found.runs and "factor it per head" in found.missing["flash"]


def test_a_cancel_is_heard_between_layers() -> None:
    def stop(stage: str, share: float) -> None:
        if share > 0.5:
            raise Cancelled("cancelled")

    request = PredictRequest("stdlib-bert", KEEP, batch=BATCH, seq=SEQ, engines=("dense",))
    with pytest.raises(Cancelled):
        predict(request, stop)
    assert type(torch.ones(1)) is torch.Tensor
