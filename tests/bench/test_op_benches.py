"""The op benchmarks on small shapes: right kernels pass, planted bugs turn the gate red and the ratio is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flashsvd.bench import attention_sublayer, ffn
from flashsvd.bench.attention import AttentionRequest, bench_attention
from flashsvd.bench.attention_sublayer import Sublayer, layer_plan
from flashsvd.bench.counts import ffn_work, flash_layer, rank_space_layer
from flashsvd.bench.ffn import FfnRequest, bench_ffn
from flashsvd.bench.ops import cache_flush
from flashsvd.bench.rows import Row
from flashsvd.errors import FlashSVDError, InputError, OutOfMemoryError
from flashsvd.kernels import flash_svd_attention, flash_svd_ffn
from flashsvd.measure.ceilings import Ceilings

CEILINGS = Ceilings(0.1, 0.1, 0.1, 0.01, "highest", 64, 64)
FFN = FfnRequest(rows=2100, width=96, rank=12, rank_out=7, dtype="fp32", device="cpu", repeats=3)
ATTENTION = AttentionRequest(
    batch=3, seq=17, heads=3, head_dim=16, rank=5, rank_out=11, dtype="fp32", device="cpu", repeats=3
)


def _ffn(request: FfnRequest) -> dict[str, Row]:
    return {row.name: row for row in bench_ffn(request, CEILINGS, lambda *_: None)[1]}


def _attention(request: AttentionRequest) -> dict[str, Row]:
    return {row.name: row for row in bench_attention(request, CEILINGS, lambda *_: None)[1]}


@pytest.mark.parametrize(("dtype", "activation"), [("fp32", "gelu"), ("bf16", "gelu_tanh"), ("fp16", "relu")])
def test_every_feed_forward_passes(dtype: str, activation: str) -> None:
    rows = _ffn(replace(FFN, dtype=dtype, activation=activation))
    assert list(rows) == ["cublas", "cublas-chunk2048", "cublas-fused", "flash"]
    for name in ("cublas", "cublas-chunk2048", "flash"):
        row = rows[name]
        assert row.status == "measured" and row.gate and row.gate.passed and row.gate.reference == "fp64", row
        assert row.speedup and row.peak_reduction and row.tflops and row.gbps
    # Whether the fused GELU is near enough is the gate's business, and differs by torch.
    assert rows["cublas-fused"].status == "measured" and rows["cublas-fused"].gate
    work = ffn_work(2100, 96, 12, 7, torch.finfo(_dtype(dtype)).bits // 8, streamed=True)
    assert (rows["flash"].flops, rows["flash"].bytes) == (work.flops, work.bytes)
    assert (rows["cublas"].bytes or 0) > work.bytes and rows["flash"].weight_bytes == work.weight_bytes


def test_an_activation_without_an_epilogue_is_left_out() -> None:
    rows = _ffn(replace(FFN, activation="silu"))
    assert rows["cublas-fused"].status == "left out" and rows["cublas"].speedup == 1.0


def _dtype(name: str) -> torch.dtype:
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def _forgets_the_bias(
    p: torch.Tensor, u1: torch.Tensor, b1: Any, v2: torch.Tensor, **options: Any
) -> torch.Tensor:
    return flash_svd_ffn(p, u1, None, v2, **options)


def _skips_the_last_rank(
    p: torch.Tensor, u1: torch.Tensor, b1: Any, v2: torch.Tensor, **options: Any
) -> torch.Tensor:
    return flash_svd_ffn(p[..., :-1].contiguous(), u1[:, :-1].contiguous(), b1, v2, **options)


def _leaves_the_last_row(*arguments: Any, **options: Any) -> torch.Tensor:
    out = flash_svd_ffn(*arguments, **options)
    out[-1] = torch.nan
    return out


@pytest.mark.parametrize("planted", [_forgets_the_bias, _skips_the_last_rank, _leaves_the_last_row])
def test_a_wrong_feed_forward_is_red_and_claims_no_ratio(
    planted: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ffn, "flash_svd_ffn", planted)
    rows = _ffn(FFN)
    flash = rows["flash"]
    assert flash.latency_ms and flash.gate and not flash.gate.passed
    assert flash.speedup is None and flash.peak_reduction is None
    assert flash.speedup_refused and flash.speedup_refused.startswith("flash is wrong")
    assert rows["cublas-chunk2048"].speedup


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_attention_passes(dtype: str) -> None:
    rows = _attention(replace(ATTENTION, dtype=dtype))
    for name in ("dense", "lowrank", "flash-rebuild", "flash"):
        row = rows[name]
        assert row.status == "measured" and row.gate and row.gate.passed, row
        assert row.speedup and row.peak_reduction
    size = torch.finfo(_dtype(dtype)).bits // 8
    assert rows["flash-rebuild"].flops == flash_layer(ATTENTION.plan, 0, 3, 17, size).flops
    assert rows["flash"].flops == rank_space_layer(ATTENTION.plan, 0, 3, 17, size).flops


DECODER = replace(ATTENTION, heads=4, kv_heads=2, causal=True, rotary=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_attention_of_a_decoder_passes(dtype: str) -> None:
    request = replace(DECODER, dtype=dtype)
    about, found = bench_attention(request, CEILINGS, lambda *_: None)
    rows = {row.name: row for row in found}
    for name in ("dense", "lowrank", "flash-rebuild"):
        row = rows[name]
        assert row.status == "measured" and row.gate and row.gate.passed, row
        assert row.speedup and row.peak_reduction
    assert rows["flash"].status == "left out" and "no turn" in (rows["flash"].reason or "")
    size = torch.finfo(_dtype(dtype)).bits // 8
    assert rows["flash-rebuild"].flops == flash_layer(request.plan, 0, 3, 17, size, causal=True).flops
    assert "2 of k and v, causal, rotary, " in about and "by the cost model: rebuild" in about


def test_rank_space_of_a_causal_sublayer_passes() -> None:
    row = _attention(replace(ATTENTION, causal=True))["flash"]
    assert row.gate and row.gate.passed
    assert row.flops == rank_space_layer(ATTENTION.plan, 0, 3, 17, 4, causal=True).flops


@pytest.mark.parametrize("request_", [ATTENTION, DECODER, replace(ATTENTION, causal=True)])
def test_dense_and_factors_are_one_function(request_: AttentionRequest) -> None:
    form = {"causal": request_.causal, "rotary": request_.rotary}
    sublayer = Sublayer.random(request_.plan, 2, 9, torch.float32, torch.device("cpu"), 0, **form).double()
    torch.testing.assert_close(sublayer.dense_plain(), sublayer.factors_plain(), atol=1e-5, rtol=1e-5)
    for run in (Sublayer.dense, Sublayer.lowrank, Sublayer.rebuild):
        torch.testing.assert_close(run(sublayer), sublayer.factors_plain(), atol=1e-5, rtol=1e-5)


def _drops_the_last_key(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
    mask = torch.ones(q.p.shape[:2], dtype=torch.bool)
    mask[:, -1] = False
    return flash_svd_attention(q, k, v, key_mask=mask, **options)


def _forgets_the_key_bias(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
    return flash_svd_attention(q._replace(bias=None), k, v, **options)


def _sees_later_keys(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
    return flash_svd_attention(q, k, v, **options | {"causal": False})


def _turns_nothing(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
    return flash_svd_attention(q, k, v, **options | {"rotation": None})


@pytest.mark.parametrize("planted", [_drops_the_last_key, _sees_later_keys, _turns_nothing])
def test_a_wrong_attention_of_a_decoder_is_red(
    planted: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_sublayer, "flash_svd_attention", planted)
    rows = _attention(DECODER)
    rebuilt = rows["flash-rebuild"]
    assert rebuilt.gate and not rebuilt.gate.passed and rebuilt.speedup is None
    assert rows["lowrank"].speedup


@pytest.mark.parametrize("planted", [_drops_the_last_key, _forgets_the_key_bias])
def test_a_wrong_attention_is_red_and_claims_no_ratio(
    planted: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_sublayer, "flash_svd_attention", planted)
    rows = _attention(ATTENTION)
    rebuilt = rows["flash-rebuild"]
    assert rebuilt.gate and not rebuilt.gate.passed and rebuilt.speedup is None
    assert rows["lowrank"].speedup and rows["flash"].speedup


def test_the_output_rank_keeps_the_share_of_the_heads() -> None:
    plan = layer_plan(12, 64, 32, None)
    assert plan.get(0, "o") == (208,) and plan.keep == pytest.approx(0.5417, abs=0.002)
    assert layer_plan(2, 8, 8, None).get(0, "o") == (16,)


def test_commands_repeat_the_points() -> None:
    assert FFN.command() == (
        "python -m flashsvd bench ffn --rows 2100 --width 96 --rank 12 --rank-out 7 --activation gelu --dtype fp32 "
        "--device cpu --repeats 3 --seed 0"
    )
    assert replace(FFN, rank_out=None).config()["rank_out"] == 12
    assert "--head-dim 16 --rank 5 --rank-out 11" in ATTENTION.command()
    assert (
        "--heads 4 --kv-heads 2 --head-dim 16 --rank 5 --rank-out 11 --causal --rotary" in DECODER.command()
    )
    assert DECODER.config()["kv_heads"] == 2 and ATTENTION.config()["kv_heads"] == 3
    assert "causal" not in ATTENTION.command()
    assert replace(ATTENTION, rank_out=None).config()["rank_out"] == layer_plan(3, 16, 5, None).get(0, "o")[0]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (replace(FFN, rows=0), "rows must be at least 1"),
        (replace(FFN, rank_out=0), "rank-out must be at least 1"),
        (replace(FFN, activation="selu"), "activation must be one of"),
        (replace(FFN, dtype="int8"), "dtype must be one of"),
        (replace(ATTENTION, heads=0), "heads must be at least 1"),
        (replace(ATTENTION, kv_heads=2), "kv-heads must divide heads, got 2 and 3"),
        (replace(ATTENTION, kv_heads=0), "kv-heads must be at least 1"),
        (replace(ATTENTION, head_dim=15, rotary=True), "rotary needs an even head-dim, got 15"),
        (replace(ATTENTION, rank=17), "rank must be from 1 to 16"),
        (replace(ATTENTION, rank_out=49), "rank-out must be from 1 to 48"),
        (replace(ATTENTION, rank_out=0), "rank-out must be at least 1"),
    ],
)
def test_bad_requests(request_: FfnRequest | AttentionRequest, words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_.check()


def test_what_cannot_fit_is_refused_before_it_is_taken() -> None:
    huge: list[Callable[[], object]] = [
        lambda: _ffn(replace(FFN, rows=10**12)),
        lambda: _attention(replace(ATTENTION, batch=10**10)),
    ]
    for run in huge:
        with pytest.raises(OutOfMemoryError, match="is free") as error:
            run()
        assert isinstance(error.value, FlashSVDError)


def test_the_flush_writes_more_than_a_cache_holds() -> None:
    written = cache_flush(torch.device("cpu"))()
    assert isinstance(written, torch.Tensor) and written.nbytes == 64 * 2**20
