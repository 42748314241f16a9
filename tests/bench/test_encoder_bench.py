"""The encoder benchmark on small models: every baseline is the same function, and a wrong engine is caught."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from flashsvd.allocate import by_role
from flashsvd.bench import encoder_contestants
from flashsvd.bench.chunked import can_chunk, chunked_feed_forward, micro_batched
from flashsvd.bench.counts import flash_layer, rank_space_layer
from flashsvd.bench.encoder import EncoderRequest, bench_encoder
from flashsvd.bench.encoder_contestants import CONTESTANTS, Setting
from flashsvd.bench.model_counts import flash_work
from flashsvd.bench.rows import Row
from flashsvd.engines.build import weight_bytes
from flashsvd.errors import InputError, OutOfMemoryError, PlanError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.load import LoadedModel, load
from flashsvd.results import PlanChoice
from flashsvd.session import Session

CEILINGS = Ceilings(0.1, 0.1, 0.1, 0.01, "highest", 64, 64)
DENSE = ("dense", "dense-compile", "dense-micro8", "dense-chunked-ffn")
LOWRANK = ("lowrank", "lowrank-compile")


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    yield Session()


def _request(folder: Path, **changes: Any) -> EncoderRequest:
    start = EncoderRequest(
        str(folder),
        PlanChoice(ranks=(9, 20, 11)),
        ("ranks", "9,20,11"),
        batch=10,
        seq=16,
        device="cpu",
        engines=(*DENSE, *LOWRANK),
        repeats=3,
        compile_backend="eager",
    )
    return replace(start, **changes)


def _bench(request: EncoderRequest, session: Session) -> dict[str, Row]:
    stages: list[str] = []
    about, rows = bench_encoder(request, CEILINGS, session, lambda stage, share: stages.append(stage))
    assert "Timing" in stages and "keep" in about
    return {row.name: row for row in rows}


def test_every_baseline_passes_and_has_its_numbers(tiny_folder: Path, session: Session) -> None:
    rows = _bench(_request(tiny_folder), session)
    assert list(rows) == [*DENSE, *LOWRANK]
    for row in rows.values():
        assert row.status == "measured" and row.gate and row.gate.passed, row
        assert row.gate.reference == ("dense" if row.name in DENSE else "lowrank") + ", fp64"
        assert row.latency_ms and row.repeats == 3 and row.speedup and row.flops and row.weight_bytes
    dense, micro = rows["dense"], rows["dense-micro8"]
    assert dense.peak_bytes and micro.peak_bytes and micro.peak_bytes < dense.peak_bytes
    assert dense.flops == micro.flops and (micro.bytes or 0) > (dense.bytes or 0)
    assert (rows["lowrank"].flops or 0) < (dense.flops or 0)
    assert (rows["lowrank"].weight_bytes or 0) < (dense.weight_bytes or 0)
    assert rows["dense-compile"].peak_bytes is None and rows["dense-compile"].peak_refused


def test_the_flash_engine_is_a_row_like_the_others(tiny_folder: Path, session: Session) -> None:
    rows = _bench(_request(tiny_folder, engines=("dense", "flash", "flash-graph"), dtype="bf16"), session)
    assert rows["flash"].status == "measured" and rows["flash"].gate and rows["flash"].gate.passed, rows[
        "flash"
    ]
    assert rows["flash"].gate.reference == "lowrank, fp32"
    assert rows["flash"].peak_reduction and rows["flash"].speedup_refused == "dense-compile was not run"
    assert rows["flash-graph"].status == "left out" and rows["flash-graph"].reason == "CUDA graphs need a GPU"


def test_flash_is_counted_as_what_it_runs(tiny: LoadedModel) -> None:
    for per_head, layer in ((True, rank_space_layer), (False, flash_layer)):
        plan = by_role(tiny.shape.with_per_head(per_head), 9, 20, 11)
        setting = Setting(tiny, {}, plan, "svd", torch.zeros(4, 16, dtype=torch.long), "eager")
        assert setting.work(flash_work).flops == 3 * layer(plan, 0, 4, 16, 4).flops


def test_a_wrong_engine_is_red_and_claims_no_ratio(
    tiny_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets_the_last_sequence(setting: Setting, **_: object) -> Any:
        model = copy.deepcopy(setting.lowrank)

        def spoil(_: nn.Module, __: object, out: Any) -> Any:
            out["last_hidden_state"][-1] = 0
            return out

        model.register_forward_hook(spoil)
        return model

    original = Setting.built

    def built(self: Setting, engine: str, **options: Any) -> Any:
        return forgets_the_last_sequence(self) if engine == "flash" else original(self, engine, **options)

    monkeypatch.setattr(Setting, "built", built)
    rows = _bench(_request(tiny_folder, engines=("dense", "dense-compile", "lowrank", "flash")), session)
    flash = rows["flash"]
    assert flash.latency_ms and flash.gate and not flash.gate.passed
    assert flash.speedup is None and flash.speedup_refused and "flash is wrong" in flash.speedup_refused
    assert rows["lowrank"].speedup


def test_a_compiler_that_fails_is_one_line(
    tiny_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler found\nset CXX")

    monkeypatch.setattr(torch, "compile", no_compiler)
    rows = _bench(_request(tiny_folder, engines=("dense", "dense-compile")), session)
    assert rows["dense-compile"].reason == "RuntimeError: no C++ compiler found"
    assert rows["dense"].latency_ms and rows["dense"].speedup_refused == "dense-compile failed"


def test_a_family_whose_feed_forward_is_not_found_is_left_out(
    tiny_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_contestants, "can_chunk", lambda *_: False)
    row = _bench(_request(tiny_folder, engines=("dense", "dense-chunked-ffn")), session)["dense-chunked-ffn"]
    assert row.status == "left out" and row.reason == "not available for BERT"


def test_a_batch_that_cannot_fit_is_refused_before_it_is_taken(
    tiny_folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsvd.bench.encoder.available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match="batch 10 x 16"):
        _bench(_request(tiny_folder), session)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"engines": ()}, InputError, "engines must be some of"),
        ({"engines": ("warp",)}, InputError, "got 'warp'"),
        ({"batch": 0}, InputError, "batch must be at least 1"),
        ({"repeats": 0}, InputError, "repeats must be at least 1"),
        ({"dtype": "int8"}, InputError, "dtype must be one of"),
    ],
)
def test_bad_requests(tiny_folder: Path, changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        _request(tiny_folder, **changes).check()


def test_the_command_repeats_the_point(tiny_folder: Path) -> None:
    request = _request(tiny_folder, engines=("dense", "lowrank"), per_head=False, device="auto", dtype="fp16")
    assert request.command() == (
        f"python -m flashsvd bench encoder {tiny_folder} --ranks 9,20,11 --whole --engines dense,lowrank "
        "--compile-backend eager --method svd --batch 10 --seq 16 --dtype fp16 --device auto --repeats 3 --seed 0"
    )
    assert request.config()["ranks"] == "9,20,11"
    assert "--engines" not in replace(request, engines=tuple(CONTESTANTS)).command()


def test_a_plan_that_does_not_fit_is_said_before_anything_runs(tiny_folder: Path, session: Session) -> None:
    from flashsvd.bench.request import check_fits_model

    with pytest.raises(PlanError, match="rank for q must be from 1 to 32"):
        check_fits_model(_request(tiny_folder, choice=PlanChoice(ranks=(99, 20, 11))), session)
    with pytest.raises(InputError, match="seq must be from 1 to 64"):
        check_fits_model(_request(tiny_folder, seq=65), session)


@pytest.fixture(scope="module", params=["bert", "distilbert", "modernbert"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """One small model per way a feed-forward is laid out: in the block, in a module of its own, and fused."""
    sizes = {
        "vocab_size": 120,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    tokens = dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
    )
    config = transformers.AutoConfig.for_model(
        request.param, hidden_size=64, intermediate_size=96, **sizes, **tokens
    )
    folder = tmp_path_factory.mktemp(request.param)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return load(str(folder))


def test_chunks_are_the_same_function_on_the_same_weights(small: LoadedModel) -> None:
    model: Any = small.model
    assert can_chunk(model, small.family, small.shape)
    chunked = chunked_feed_forward(model, small.family, small.shape, chunk_tokens=7)
    rows: list[int] = []
    path = small.family.path(0, "down")
    chunked.get_submodule(path).register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    ids = torch.randint(1, 120, (3, 11))
    with torch.inference_mode():
        mine, plain = chunked(ids), model(ids)
    assert rows == [7, 7, 7, 7, 5]
    torch.testing.assert_close(mine["last_hidden_state"], plain["last_hidden_state"])
    assert {p.data_ptr() for p in chunked.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert weight_bytes(chunked) == weight_bytes(model)
    with torch.inference_mode():
        model(ids)
    assert len(rows) == 5


def test_micro_batches_join_every_output(tiny: LoadedModel) -> None:
    ids = torch.randint(200, (5, 11))
    with torch.inference_mode():
        joined, plain = micro_batched(tiny.model, ids, 2), tiny.model(ids)
    torch.testing.assert_close(joined["logits"], plain["logits"])
