"""The decoder benchmarks on a small model: every row is the same function, and a wrong runtime is caught."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashsvd.bench import decoder_setting
from flashsvd.bench.decode import DecodeRequest, bench_decode
from flashsvd.bench.decode_contestants import CONTESTANTS
from flashsvd.bench.decode_reference import Agreement, agreement
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.decoders import DynamicDecoder, StaticDecoder
from flashsvd.bench.model_counts import kv_bytes, step_layer
from flashsvd.bench.prefill import PrefillRequest, bench_prefill
from flashsvd.bench.request import ModelBench, check_fits_model
from flashsvd.bench.rows import Row
from flashsvd.decoding.runtime import Runtime
from flashsvd.errors import InputError, OutOfMemoryError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.session import Session
from tests.small_decoders import DecoderFolder

CEILINGS = Ceilings(0.1, 0.1, 0.1, 0.01, "highest", 64, 64)
KEEP = (PlanChoice(keep=0.5), ("keep", "0.5"))
FIXED: dict[str, Any] = {"method": "random", "per_head": False, "device": "cpu", "compile_backend": "eager"}
GRAPHS = ("dense-graph", "flash-graph", "flash-graph-rank")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """spoil(change): what every step of our runtime says is changed."""

    def use(change: Any) -> None:
        step = Runtime.step
        monkeypatch.setattr(Runtime, "step", lambda self, tokens: change(step(self, tokens)))

    return use


def _decode(folder: Path, session: Session, **changes: Any) -> dict[str, Row]:
    request = DecodeRequest(str(folder), *KEEP, batch=3, context=12, new_tokens=4, repeats=3, **FIXED)
    request = replace(request, **changes)
    request.check()
    about, rows = bench_decode(request, CEILINGS, session, lambda *_: None)
    assert "keep 0.4" in about
    return {row.name: row for row in rows}


def _prefill(folder: Path, session: Session, **changes: Any) -> dict[str, Row]:
    request = replace(PrefillRequest(str(folder), *KEEP, batch=3, seq=12, repeats=3, **FIXED), **changes)
    about, rows = bench_prefill(request, CEILINGS, session, lambda *_: None)
    assert ("flash: rebuild" in about) == any(name.startswith("flash") for name in request.engines), about
    return {row.name: row for row in rows}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_of_decoding_passes_and_has_its_numbers(
    writer_folder: Path, session: Session, dtype: str
) -> None:
    rows = _decode(writer_folder, session, dtype=dtype)
    assert [name for name, row in rows.items() if row.status == "left out"] == list(GRAPHS)
    for name, row in rows.items():
        if name in GRAPHS:
            assert row.reason == "CUDA graphs need a GPU"
            continue
        assert row.gate and row.gate.passed and row.agreement == 1.0 and row.differences == 0, row
        kind, wide = (
            ("dense" if name.startswith("dense") else "lowrank"),
            "fp64" if dtype == "fp32" else "fp32",
        )
        assert row.gate.reference == f"{kind}, {wide}"
        assert row.latency_ms and row.repeats == 3 and row.speedup and row.flops and row.weight_bytes
        assert row.tokens_per_second == pytest.approx(3e3 / row.latency_ms.p50)
        assert row.runtime_speedup is None and row.runtime_refused == "dense-graph was left out"
        assert row.kernels is None and row.launches is None and row.kv_bytes
    assert rows["dense"].peak_bytes and rows["flash"].peak_bytes
    assert rows["dense-static-compile"].peak_bytes is None


@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen2", "qwen3", "opt"])
def test_every_family_decodes_and_reads_prompts(
    decoder_folder: DecoderFolder, session: Session, family: str
) -> None:
    """Mistral and Qwen2 with windows that are full before the first step."""
    folder, engines = decoder_folder(family), ("dense", "dense-static-compile", "lowrank")
    rows = {
        **_decode(folder, session, engines=engines),
        **_prefill(folder, session, engines=("dense-micro",)),
    }
    if family == "opt":
        # It makes a mask as long as its cache says, which a static cache says with a tensor.
        assert rows.pop("dense-static-compile").status == "failed"
    for row in rows.values():
        assert row.gate and row.gate.passed and row.agreement == 1.0, row


def test_bytes_of_a_row_are_what_a_token_has_to_read(writer_folder: Path, session: Session) -> None:
    row = _decode(writer_folder, session, engines=("dense",))["dense"]
    linears = 3 * (64 * 96 * 2 + 64 * 48 * 2 + 3 * 64 * 96)
    cache = 3 * 12 * 3 * 2 * 2 * 24
    assert row.bytes == 4 * (linears + 50 * 64 + cache)
    assert row.flops == 2 * 3 * (linears + 50 * 64) + 3 * 4 * 3 * 12 * 96
    assert row.kv_bytes == 4 * cache
    assert row.latency_ms and row.bandwidth_share == pytest.approx(
        row.bytes / (row.latency_ms.p50 / 1e3) / 1e12 / 0.01
    )


def test_a_rank_cache_is_counted_as_it_is(
    decoder_folder: DecoderFolder, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 keeps both sides in rank space, which needs no graph to be seen."""
    monkeypatch.setattr("flashsvd.bench.decode_contestants._no_graphs", lambda setting: None)
    runtime = Setting.runtime
    monkeypatch.setattr(
        Setting, "runtime", lambda setting, model, graph: runtime(setting, model, graph=False)
    )
    engines = ("lowrank", "flash-graph", "flash-graph-rank")
    rows = _decode(decoder_folder("gpt2"), session, engines=engines, per_head=True)
    dense, rank = rows["flash-graph"], rows["flash-graph-rank"]
    assert rank.gate and rank.gate.passed and rank.agreement == 1.0
    assert dense.kv_bytes and rank.kv_bytes and rank.kv_bytes < dense.kv_bytes
    assert dense.bytes and rank.bytes
    assert dense.bytes - rank.bytes == (dense.kv_bytes - rank.kv_bytes) * 12 // 16


def test_latency_is_of_one_token_not_of_the_block(
    writer_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashsvd.bench import contest
    from flashsvd.results import Quantiles

    monkeypatch.setattr(
        contest,
        "time_engines",
        lambda calls, *_, **__: {name: (Quantiles(4.0, 8.0, 16.0), 3) for name in calls},
    )
    row = _decode(writer_folder, session, engines=("dense",))["dense"]
    assert row.latency_ms == Quantiles(1.0, 2.0, 4.0) and row.tokens_per_second == 1500


def _loses_the_last_sequence(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone()
    logits[-1] = 0
    return logits


def _sums_one_key_less(logits: torch.Tensor) -> torch.Tensor:
    return logits * (1 + 1e-3 * torch.arange(logits.shape[-1]).sin())


@pytest.mark.parametrize("change", [_loses_the_last_sequence, _sums_one_key_less])
@pytest.mark.parametrize("measure", [_decode, _prefill])
def test_a_wrong_runtime_is_red_and_claims_no_ratio(
    writer_folder: Path, session: Session, spoil: Callable[..., None], change: Any, measure: Any
) -> None:
    spoil(change)
    engines = ("dense", "lowrank", "flash")
    rows = measure(writer_folder, session, engines=engines)
    assert rows["lowrank"].gate and rows["lowrank"].gate.passed
    flash = rows["flash"]
    assert flash.latency_ms and flash.gate and not flash.gate.passed
    assert flash.peak_reduction is None and flash.peak_refused and "flash is wrong" in flash.peak_refused


def test_a_cache_that_forgets_is_red(
    writer_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that does not see the oldest token: its logits are those of another prompt."""
    prefill = Runtime.prefill

    def forgets(self: Runtime, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        logits = prefill(self, ids, mask)
        for layer in self._cache.layers:
            layer.values[:, :, 0] = 0
        return logits

    monkeypatch.setattr(Runtime, "prefill", forgets)
    for measure in (_decode, _prefill):
        row = measure(writer_folder, session, engines=("lowrank", "flash"))["flash"]
        assert row.gate and not row.gate.passed and row.speedup is None


def test_greedy_tokens_differ_only_where_rounding_cannot() -> None:
    exact = torch.tensor([[[4.0, 3.0, 0.0]], [[4.0, 3.99, 0.0]]])
    turned = exact[..., [1, 0, 2]]
    assert agreement(exact, exact, 1e-2) == Agreement(1.0, 0)
    assert agreement(turned, exact, 1e-2) == Agreement(0.0, 1)
    assert agreement(turned, exact, 1e-5) == Agreement(0.0, 2)


def test_a_row_whose_tokens_differ_is_red_though_its_error_passes(
    writer_folder: Path, session: Session, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One logit of thousands may be wrong within a norm."""

    def turns_one(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[0, (logits[0].argmax() + 1) % 50] = logits[0].max() + 1e-3
        return logits

    spoil(turns_one)
    monkeypatch.setattr("flashsvd.measure.fidelity.BASELINE_FACTOR", 1e9)
    monkeypatch.setattr("flashsvd.measure.fidelity.LIMITS", dict.fromkeys((torch.float32,), 0.1))
    monkeypatch.setattr("flashsvd.bench.decode_reference._SIGMAS", 0.0)
    rows = _decode(writer_folder, session, engines=("lowrank", "flash"))
    flash = rows["flash"]
    assert flash.gate and flash.gate.error <= flash.gate.limit and not flash.gate.passed
    assert flash.differences == 4 and flash.agreement == pytest.approx(1 - 4 / 15)
    assert flash.peak_refused and rows["lowrank"].differences == 0


def test_every_way_of_prefill_passes_and_has_its_numbers(writer_folder: Path, session: Session) -> None:
    rows = _prefill(writer_folder, session)
    assert rows.pop("flash-graph").reason == "CUDA graphs need a GPU"
    for name, row in rows.items():
        assert row.gate and row.gate.passed and row.agreement == 1.0 and row.speedup, row
        # Ours has room for the token that is judged, too.
        tokens = 13 if name == "flash" else 12
        assert row.tokens_per_second and row.latency_ms and row.kv_bytes == 4 * 3 * tokens * 3 * 2 * 2 * 24
        assert (row.peak_bytes is None) == name.endswith("compile")
    dense, micro = rows["dense"], rows["dense-micro"]
    assert (micro.peak_bytes or 0) < (dense.peak_bytes or 0)
    assert dense.flops == micro.flops and (micro.bytes or 0) > (dense.bytes or 0)
    alone = _prefill(writer_folder, session, batch=1, engines=("dense", "dense-micro"))["dense-micro"]
    assert alone.status == "left out" and alone.reason == "a batch of one is a micro-batch"


def test_caches_that_do_not_fit_at_once_are_timed_in_groups(
    writer_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = DecodeRequest(str(writer_folder), *KEEP, batch=2, context=8, new_tokens=2, repeats=3, **FIXED)
    request = replace(request, engines=("dense", "lowrank"))
    cache = 4 * 2 * 10 * 3 * 2 * 2 * 24
    monkeypatch.setattr(Setting, "room", lambda *_: int(1.5 * cache))
    about, rows = bench_decode(request, CEILINGS, session, lambda *_: None)
    assert about.endswith("timed in 2 groups, as not all caches fit at once")
    assert [row.peak_reduction is not None for row in rows] == [True, True]


def test_a_cache_that_cannot_fit_is_refused_before_it_is_taken(
    writer_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_setting, "available_bytes", lambda device: 1000)
    for measure in (_decode, _prefill):
        with pytest.raises(OutOfMemoryError, match=r"a cache of 3 x 1\d tokens of .* is free"):
            measure(writer_folder, session)


@pytest.fixture(scope="module")
def writer(writer_folder: Path) -> LoadedModel:
    return load(str(writer_folder))


@pytest.mark.parametrize("make", [DynamicDecoder, lambda model: StaticDecoder(model, 16, "eager")])
def test_a_decoder_that_was_rewound_says_the_same_again(writer: LoadedModel, make: Any) -> None:
    decoder = make(writer.model)
    ids = torch.randint(50, (2, 9))
    whole = writer.model(torch.cat([ids, torch.tensor([[5, 7], [3, 1]])], 1)).logits
    for _ in range(2):
        torch.testing.assert_close(decoder.fill(ids), whole[:, 8])
        for _ in range(2):
            decoder.rewind()
            torch.testing.assert_close(decoder.step(torch.tensor([5, 3])), whole[:, 9])
            torch.testing.assert_close(decoder.step(torch.tensor([7, 1])), whole[:, 10])


def test_the_dense_step_is_compiled_once_for_all_plans_of_an_input(writer_folder: Path) -> None:
    graphs: list[int] = []

    def counted(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return module.forward

    torch._dynamo.register_backend(counted, name="counted_steps")
    bench, compiled = ModelBench(Session(), bench_decode), []
    start = DecodeRequest(str(writer_folder), *KEEP, context=8, new_tokens=2, repeats=3, **FIXED)
    for context, keep in ((8, 0.5), (8, 0.3), (9, 0.3)):
        plan = PlanChoice(keep=keep), ("keep", str(keep))
        request = replace(
            start,
            choice=plan[0],
            plan_option=plan[1],
            context=context,
            engines=("dense-static-compile",),
            compile_backend="counted_steps",
        )
        graphs.clear()
        _, (row,) = bench(request, CEILINGS, lambda *_: None)
        assert row.gate and row.gate.passed, row
        compiled.append(len(graphs))
    assert compiled == [1, 0, 1]


def test_the_command_repeats_the_point(writer_folder: Path) -> None:
    request = DecodeRequest("llama-2-7b", *KEEP, per_head=False, context=4096, dtype="bf16", method="random")
    assert request.command() == (
        "python -m flashsvd bench decode llama-2-7b --keep 0.5 --whole --method random --batch 1 --context 4096 "
        "--new-tokens 32 --dtype bf16 --device auto --repeats 10 --seed 0"
    )
    assert json.dumps(request.config())


def test_what_cannot_be_asked_is_one_line(writer_folder: Path, tiny_folder: Path, session: Session) -> None:
    decode = DecodeRequest(str(writer_folder), *KEEP, **FIXED)
    prefill = PrefillRequest(str(writer_folder), *KEEP, **FIXED)
    for request, words in (
        (replace(decode, context=90, new_tokens=11), "at most 100 together .* got 90 and 11"),
        (replace(prefill, seq=100), "seq must be at most 99"),
        (
            replace(decode, model=str(tiny_folder)),
            "does not write text: expected a causal language model of one of",
        ),
        (replace(prefill, model=str(tiny_folder)), "BertForSequenceClassification"),
    ):
        with pytest.raises(InputError, match=words) as error:
            check_fits_model(request, session)
        assert "\n" not in str(error.value)
    for request, words in (
        (replace(decode, context=0), "context must be at least 1"),
        (replace(decode, new_tokens=0), "new-tokens must be at least 1"),
        (replace(decode, engines=("flash-rebuild",)), "engines must be some of dense, dense-static-compile"),
        (replace(prefill, engines=("flash-graph-rank",)), "got 'flash-graph-rank'"),
    ):
        with pytest.raises(InputError, match=words):
            request.check()


def test_a_step_by_hand(writer: LoadedModel) -> None:
    dense = RankPlan.dense(writer.shape)
    linears = 64 * 96 * 2 + 64 * 48 * 2 + 3 * 64 * 96
    work = step_layer(dense, 0, batch=5, context=100, itemsize=2)
    assert (work.flops, work.weight_bytes) == (2 * 5 * linears + 4 * 5 * 100 * 96, 2 * linears)
    assert work.activation_bytes == 2 * 2 * 5 * 100 * 48 == kv_bytes(dense, 5, 100, 2) // 3
    near = step_layer(dense, 0, batch=5, context=100, itemsize=2, window=9)
    assert near.activation_bytes == 2 * 2 * 5 * 10 * 48 and near.flops < work.flops


def test_dense_weights_are_packed_before_any_row_has_seen_where_they_are(
    decoder_folder: DecoderFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsvd.bench.decode_contestants._no_graphs", lambda setting: None)
    loaded = load(str(decoder_folder("llama")))
    seen: list[set[int]] = []

    def runtime(setting: Setting, model: Any, *, graph: bool) -> Runtime:
        made = Runtime(loaded, model, loaded.shape, batch=1, context=setting.capacity, graph=False)
        seen.append({parameter.data_ptr() for parameter in loaded.model.parameters()})
        return made

    monkeypatch.setattr(Setting, "runtime", runtime)
    plan = RankPlan.dense(loaded.shape)
    setting = Setting(loaded, {}, plan, "random", torch.ones(1, 4, dtype=torch.long), 2, "eager")
    contestant = CONTESTANTS["dense-graph"](setting)
    before = {parameter.data_ptr() for parameter in loaded.model.parameters()}
    contestant.prepare()
    assert seen == [before]


@pytest.mark.gpu
def test_a_gpu_decodes_in_one_graph_and_counts_it(decoder_folder: DecoderFolder, session: Session) -> None:
    fixed = {**FIXED, "device": "cuda", "compile_backend": "inductor", "dtype": "bf16"}
    request = DecodeRequest(str(decoder_folder("llama")), *KEEP, batch=2, context=16, new_tokens=4, **fixed)
    _, found = bench_decode(replace(request, repeats=3), CEILINGS, session, lambda *_: None)
    rows = {row.name: row for row in found}
    for name, row in rows.items():
        assert row.gate and row.gate.passed and row.latency_ms and row.kv_bytes, row
        # What transformers' generate() launches and keeps is not asked.
        assert name == "dense-generate" or (row.peak_bytes and row.launches and row.kernels), row
    assert rows["flash-graph"].launches == rows["dense-graph"].launches == 1
    assert (rows["dense-static-compile"].launches or 99) < (rows["dense"].launches or 0)
    assert rows["flash-graph"].runtime_speedup and rows["flash-graph"].speedup


@pytest.mark.gpu
def test_a_gpu_reads_prompts_in_every_way(decoder_folder: DecoderFolder, session: Session) -> None:
    fixed = {**FIXED, "device": "cuda", "compile_backend": "inductor", "dtype": "bf16"}
    request = PrefillRequest(str(decoder_folder("llama")), *KEEP, batch=2, seq=64, repeats=3, **fixed)
    _, rows = bench_prefill(request, CEILINGS, session, lambda *_: None)
    for row in rows:
        assert row.gate and row.gate.passed and row.peak_bytes and row.speedup, row
