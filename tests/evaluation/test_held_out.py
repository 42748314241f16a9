"""A model's own held-out set, of labels or of text: one score each, the same in every command that gives one."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from flashsvd.compare import compare
from flashsvd.curve import score_curve
from flashsvd.data import Samples, evaluation_samples, evaluation_tokens, timing_ids
from flashsvd.errors import InputError, ModelError
from flashsvd.evaluation.evaluate import EvaluateRequest, evaluate
from flashsvd.evaluation.held_out import Pieces, can_score, held_out
from flashsvd.measure.perplexity import perplexity
from flashsvd.models.load import LoadedModel, load
from flashsvd.results import CompareRequest, CurveRequest, PlanChoice, from_json, to_json
from flashsvd.search.budget import Setting, plan_for_budget
from flashsvd.search.smallest import smallest_within
from flashsvd.session import Session

SESSION = Session()


@pytest.fixture(scope="module")
def language(language_folder: Path) -> LoadedModel:
    return load(str(language_folder))


class Parrot:
    """Says the class that the first token names, and for one token what it is told to."""

    device = torch.device("cpu")

    def __init__(self, odd: float = 0.0) -> None:
        self.odd = odd

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        assert (attention_mask[:, 0] == 1).all()
        logits = torch.nn.functional.one_hot(input_ids[:, 0], 10).float()
        return SimpleNamespace(logits=logits + torch.where(input_ids[:, :1] == 6, self.odd, 0.0))


def test_every_piece_counts_whatever_its_length() -> None:
    encoded = tuple((index % 7,) * (1 + index % 50) for index in range(101))
    labels = tuple(9 if index == 3 else index % 7 for index in range(101))
    pieces = Pieces(Parrot(), Samples(encoded, labels, pad_id=0), seed=4)
    metric = pieces.score(Parrot())
    assert metric.value == pytest.approx(100 / 101) and (metric.n, metric.seed) == (101, 4)
    assert metric.floor == pytest.approx(15 / 101)
    with pytest.raises(FloatingPointError, match="not finite"):
        pieces.score(Parrot(math.nan))


def test_pieces_are_scored_as_accuracy_is(scored_folder: Path) -> None:
    loaded = load(str(scored_folder))
    held = held_out(loaded, 30, seed=1)
    drawn = evaluation_samples(loaded, 30, seed=1)
    assert drawn and held.words == "30 held-out pieces"
    expected = held.score(loaded.model)
    right = [
        int(loaded.model(torch.tensor([piece])).logits.argmax()) == label
        for piece, label in zip(drawn.encoded, drawn.labels, strict=True)
    ]
    assert (expected.value, expected.n, expected.seed) == (sum(right) / 30, 30, 1)
    beside = held.beside_dense(loaded.model)
    assert beside.metric == expected and beside.kl.value == 0 and beside.agreement.value == 1
    assert beside.kl.counted == expected.counted == "pieces" and not expected.lower_is_better


def test_text_is_scored_as_perplexity_is(language: LoadedModel) -> None:
    held = held_out(language, 5, seed=1)
    tokens = evaluation_tokens(language, 5)
    assert tokens is not None and len(tokens) == 5 * 32 + 1 and held.words == "160 held-out tokens"
    found = perplexity(language.model, tokens, window=32, batch=8, seed=1)
    assert held.score(language.model) == found.metric(1)
    beside = held.beside_dense(language.model)
    assert beside.metric.value == pytest.approx(found.value) and beside.kl.value == 0
    assert beside.metric.counted == beside.kl.counted == beside.agreement.counted == "tokens"
    assert beside.metric.lower_is_better and beside.kl.n == 160


def test_random_weights_and_models_without_a_set_have_no_score(tiny: LoadedModel) -> None:
    for loaded in (tiny, load("bert-base", device="meta")):
        assert not can_score(loaded)
        with pytest.raises(ModelError, match="no held-out set to score"):
            held_out(loaded, 3, seed=0)


def test_a_set_that_cannot_be_read_is_said(language_folder: Path, tmp_path: Path) -> None:
    for file in language_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pd.DataFrame({"words": ["w4"]}).to_parquet(tmp_path / "evaluation.parquet")
    with pytest.raises(ModelError, match="expected Parquet with text"):
        held_out(load(str(tmp_path)), 3, seed=0)


def test_timed_batches_are_the_held_out_text(language: LoadedModel) -> None:
    ids = timing_ids(language, 4, 20, seed=0)
    assert ids.shape == (4, 20) and (ids == 2).any(), "every text begins with [BOS]"


def test_a_curve_of_perplexity_falls_to_dense(language_folder: Path) -> None:
    request = CurveRequest(str(language_folder), (0.2, 0.6, 1.0), samples=20)
    seen = []
    curve = score_curve(request, SESSION, on_point=seen.append)
    values = [point.metric.value for point in curve.points]
    assert values == sorted(values, reverse=True) and seen == list(curve.points)
    assert curve.dense.name == "perplexity" and values[-1] == pytest.approx(curve.dense.value, rel=1e-5)
    assert values[0] > 1.1 * curve.dense.value
    for point in curve.points:
        assert point.kl and point.agreement and point.metric.n == point.kl.n == point.agreement.n == 640
        assert point.metric.low < point.metric.value < point.metric.high
    assert from_json(type(curve), to_json(curve)) == curve


def test_compare_evaluate_and_curve_give_one_dense_number(language_folder: Path) -> None:
    name = str(language_folder)
    compared = compare(
        CompareRequest(
            name, PlanChoice(keep=0.6), batch=2, seq=16, engines=("dense", "lowrank"), samples=20, repeats=3
        ),
        SESSION,
    )
    curve = score_curve(CurveRequest(name, (0.6,), samples=20), SESSION)
    scored = evaluate(EvaluateRequest(name, choice=PlanChoice(keep=0.6), samples=20), SESSION)
    dense, lowrank = (run.metric for run in compared.runs)
    assert dense and lowrank and scored.kl and curve.points[0].kl
    assert dense.value == pytest.approx(curve.dense.value)
    assert lowrank.value == pytest.approx(curve.points[0].metric.value)
    assert scored.scores[0].value == pytest.approx(lowrank.value)
    assert scored.kl.value == pytest.approx(curve.points[0].kl.value)
    assert dense.n == lowrank.n == scored.kl.n == 640


@pytest.mark.parametrize("method", ["fwsvd", "asvd", "whiten", "basis_sharing"])
def test_every_method_is_calibrated_on_the_training_text(language_folder: Path, method: str) -> None:
    curve = score_curve(CurveRequest(str(language_folder), (0.5, 1.0), method, samples=10), SESSION)
    assert curve.calibration is not None
    assert curve.points[0].metric.value > curve.points[1].metric.value
    assert curve.points[1].metric.value == pytest.approx(curve.dense.value, rel=1e-4)


def test_a_budget_is_scored_by_perplexity_and_never_worse_than_uniform(language_folder: Path) -> None:
    setting = Setting(str(language_folder), samples=10, step=4)
    loaded = SESSION.model(setting.model, "fp32", "auto", True)
    answer = plan_for_budget(setting, "parameters", 0.7 * loaded.parameters, SESSION)
    assert answer.score and answer.dense_score and answer.kl is not None and answer.uniform_kl is not None
    assert answer.score.name == "perplexity" and answer.score.value > answer.dense_score.value
    assert answer.kl <= answer.uniform_kl


def test_the_smallest_plan_within_a_rise_of_perplexity(language_folder: Path) -> None:
    setting = Setting(str(language_folder), allocator="uniform", samples=10)
    found = smallest_within(setting, 0.5, tolerance=0.1, session=SESSION)
    assert found.metric == "perplexity" and found.passes and found.fails
    assert found.passes.score and found.fails.score
    limit = 1.5 * found.dense.value
    assert found.passes.score.value <= limit < found.fails.score.value
    assert found.fails.keep < found.passes.keep < found.fails.keep + 0.12
    none = smallest_within(setting, 0.0, tolerance=0.5, session=SESSION)
    assert none.plan is None and none.best.score
    assert none.best.score.value == min(row.score.value for row in none.tried if row.score)
    with pytest.raises(InputError, match="scored by perplexity, not by accuracy: use perplexity or kl"):
        smallest_within(setting, 0.1, metric="accuracy", session=SESSION)
    with pytest.raises(InputError, match="metric must be accuracy, perplexity, kl, got 'loss'"):
        smallest_within(setting, 0.1, metric="loss", session=SESSION)  # type: ignore[arg-type]


def test_a_model_that_gives_nan_fails_and_skips_nothing(language: LoadedModel) -> None:
    held = held_out(language, 5, seed=0)
    broken = load(str(language.source.folder))
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        held.score(broken.model)
