"""What ships is what it says: the bundled model, its card, and the recordings."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from flashsvd.allocate import uniform
from flashsvd.compare import compare
from flashsvd.curve import score_curve
from flashsvd.data import evaluation_samples
from flashsvd.engines.build import build
from flashsvd.evaluation.held_out import held_out
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.paths import assets, bundled_models
from flashsvd.ranks import RankPlan
from flashsvd.recording import bundled, read
from flashsvd.results import Calibration, CompareRequest, CurveRequest, PlanChoice
from flashsvd.spectra import compute

FOLDER = assets() / "models" / "stdlib-bert"
LANGUAGE = assets() / "models" / "stdlib-llama"


def test_the_card_and_the_files_agree() -> None:
    assert "stdlib-bert" in bundled_models()
    card = json.loads((FOLDER / "card.json").read_text())
    evaluation = pd.read_parquet(FOLDER / "evaluation.parquet")
    calibration = pd.read_parquet(FOLDER / "calibration.parquet")
    assert len(evaluation) == card["eval_pieces"]
    assert evaluation["label"].nunique() >= 16
    assert not set(evaluation["source"]) & set(calibration["source"])
    assert (FOLDER / "evaluation.parquet").stat().st_size < 2**20
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 16 * 2**20
    text = (FOLDER / "README.md").read_text()
    assert f"{card['accuracy']:.1%}" in text and "Wilson" in text and "python -m flashsvd" in text


def test_the_language_models_card_and_files_agree() -> None:
    assert "stdlib-llama" in bundled_models()
    card = json.loads((LANGUAGE / "card.json").read_text())
    evaluation = pd.read_parquet(LANGUAGE / "evaluation.parquet")
    calibration = pd.read_parquet(LANGUAGE / "calibration.parquet")
    assert len(evaluation) == card["held_out"]["passages"]
    assert not set(evaluation["source"]) & set(calibration["source"])
    assert sum(file.stat().st_size for file in LANGUAGE.iterdir()) < 16 * 2**20
    text = (LANGUAGE / "README.md").read_text()
    held = card["held_out"]
    for said in (
        f"{held['perplexity']:.2f}",
        f"{held['bits_per_byte']:.3f} bits per byte",
        f"n = {held['tokens']:,}",
        card["split_sha256"],
        "python -m flashsvd train-demo stdlib-llama",
    ):
        assert said in text
    assert held["perplexity"] < 0.05 * card["unigram_perplexity"]


@pytest.mark.parametrize("folder", [FOLDER, LANGUAGE], ids=lambda folder: folder.name)
def test_no_piece_is_in_both_halves(folder: Path) -> None:
    def digests(name: str) -> set[str]:
        texts = pd.read_parquet(folder / name)["text"]
        return {hashlib.sha256(re.sub(r"\s+", " ", text).encode()).hexdigest() for text in texts}

    assert not digests("evaluation.parquet") & digests("calibration.parquet")


@pytest.mark.long
def test_the_dense_model_scores_what_its_card_says() -> None:
    """On a seeded third of the held-out pieces; the whole set is what the card reports."""
    loaded = load("stdlib-bert")
    card = json.loads((FOLDER / "card.json").read_text())
    metric = held_out(loaded, 600, seed=1).score(loaded.model)
    assert metric.low <= card["accuracy"] <= metric.high
    assert card["accuracy"] >= 0.85


@pytest.mark.slow
def test_the_language_model_scores_what_its_card_says() -> None:
    """On the first 64 windows, some of every family; all of them are what the card reports."""
    loaded = load("stdlib-llama")
    held = json.loads((LANGUAGE / "card.json").read_text())["held_out"]
    metric = held_out(loaded, None, seed=1).score(loaded.model)
    assert metric.n == 64 * 512 and metric.low <= held["perplexity"] <= metric.high


def test_the_language_model_writes_indented_lines_after_a_prompt() -> None:
    loaded = load("stdlib-llama")
    tokenizer, model = loaded.tokenizer, loaded.model
    prompt = "def read_lines(path):\n"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    lines = [line for line in tokenizer.decode(found[0, ids.shape[1] :]).split("\n")[:-1] if line.strip()]
    assert len(lines) >= 2 and lines[0].startswith("    ")
    assert all((len(line) - len(line.lstrip(" "))) % 4 == 0 for line in lines[:2])


def test_a_language_model_of_full_rank_is_dense() -> None:
    loaded = load("stdlib-llama", dtype=torch.float64)
    full = RankPlan.full_rank(loaded.shape)
    factored = build(loaded, "lowrank", factorise(loaded, compute(loaded, method_named("svd")), full), full)
    ids = torch.randint(4, 4096, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(factored(ids).logits, loaded.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_full_rank_is_dense() -> None:
    loaded = load("stdlib-bert", dtype=torch.float64)
    spectra = compute(loaded, method_named("svd"))
    samples = evaluation_samples(loaded, 64, seed=0)
    assert samples is not None
    ids = torch.tensor([samples.encoded[0][:60], samples.encoded[1][:60]])
    full = RankPlan.full_rank(loaded.shape)
    logits = build(loaded, "lowrank", factorise(loaded, spectra, full), full)(ids).logits
    # The spectra are in float32 for a model kept in float16.
    torch.testing.assert_close(logits, loaded.model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_accuracy_falls_with_keep_from_dense_to_near_chance() -> None:
    curve = score_curve(CurveRequest("stdlib-bert", (0.02, 0.1, 0.2, 1.0), samples=128))
    values = [point.metric.value for point in curve.points]
    assert values == sorted(values)
    assert values[0] < 3 * curve.dense.floor and values[-1] == curve.dense.value > 0.8
    assert values[0] + 0.1 < values[1] < values[2] - 0.1


@pytest.mark.long
def test_perplexity_rises_as_keep_falls_and_whitening_holds_it_down() -> None:
    curve = score_curve(CurveRequest("stdlib-llama", (0.2, 0.5, 1.0), samples=16))
    whitened = score_curve(
        CurveRequest("stdlib-llama", (0.2,), "whiten", samples=16, calibration=Calibration(samples=32))
    )
    values = [point.metric.value for point in curve.points]
    assert values == sorted(values, reverse=True) and values[0] > 10 * values[-1]
    assert values[-1] == pytest.approx(curve.dense.value, rel=1e-3)
    assert whitened.points[0].metric.value < 0.5 * values[0]


@pytest.mark.slow
def test_flash_takes_at_most_half_the_activation_memory_of_either() -> None:
    request = CompareRequest("stdlib-bert", PlanChoice(keep=0.5), batch=8, seq=256, samples=16, repeats=3)
    dense, lowrank, flash = compare(request).runs
    assert flash.peak_activation_bytes <= 0.5 * lowrank.peak_activation_bytes
    assert flash.peak_activation_bytes <= 0.5 * dense.peak_activation_bytes
    assert flash.gate and flash.gate.passed
    full = compare(
        CompareRequest("stdlib-bert", PlanChoice(keep=1.0), batch=2, seq=64, samples=16, repeats=3)
    )
    assert max(run.error_vs_lowrank or 0 for run in full.runs) < 1e-5


@pytest.mark.parametrize("path", bundled(), ids=lambda path: path.stem)
def test_every_recording_opens_and_is_sound(path: object) -> None:
    recording = read(path)  # type: ignore[arg-type]
    comparison = recording.comparison
    assert comparison.model.name == path.stem  # type: ignore[attr-defined]
    assert recording.command.startswith("python -m flashsvd record ")
    flash, dense = comparison.run("flash"), comparison.run("dense")
    assert flash and dense and flash.gate and flash.gate.passed
    for run in comparison.runs:
        weights = int(run.timeline.loc[run.timeline["category"] == "weight", "bytes"].sum())
        assert weights == run.weight_bytes
        peak = run.timeline["live_bytes"].max() - weights
        assert peak == pytest.approx(run.peak_activation_bytes, rel=0.01)
    assert uniform(comparison.plan.shape, 1.0).kept_parameters == comparison.plan.shape.dense_parameters
    assert set(recording.sigmas) == {(layer, slot.name) for layer, slot in comparison.plan.shape}
