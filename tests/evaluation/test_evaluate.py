"""Whole evaluations of small models, and the command that prints them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.cli.evaluate import evaluate as command
from flashsvd.errors import FlashSVDError, InputError, ModelError
from flashsvd.evaluation.evaluate import EvaluateRequest, Evaluation, evaluate
from flashsvd.evaluation.held_out import held_out
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice, to_json
from flashsvd.session import Session
from flashsvd.spectra import compute

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SESSION = Session()


def save_words(folder: Path) -> None:
    """A tokenizer of w0 to w49, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, **{f"w{n}": n + 3 for n in range(50)}}
    reader = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=reader, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)


def save(model: Any, folder: Path) -> Path:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    save_words(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder, a regression, a classifier of three classes, and a text for them to read."""
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("evaluate")
    encoder = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {
            "llama": save(LlamaForCausalLM(LlamaConfig(**encoder, num_key_value_heads=1)), root / "llama"),
            "regression": save(
                BertForSequenceClassification(BertConfig(**encoder, num_labels=1)), root / "regression"
            ),
            "classes": save(
                BertForSequenceClassification(BertConfig(**encoder, num_labels=3)), root / "classes"
            ),
        }
        words = torch.randint(50, (40, 30)).tolist()
    found["text"] = root / "text.jsonl"
    rows = [
        {"text": " ".join(f"w{n}" for n in row), "label": row[0] % 3, "score": row[0] / 50} for row in words
    ]
    found["text"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_the_bundled_model_scores_what_the_curve_scores() -> None:
    found = evaluate(EvaluateRequest("stdlib-bert", samples=48, seed=3), SESSION)
    loaded = load("stdlib-bert")
    assert found.scores[0] == held_out(loaded, 48, seed=3).score(loaded.model)
    assert [metric.name for metric in found.scores] == ["accuracy", "macro_f1", "matthews"]
    assert (found.plan, found.kl, found.against, found.layer_errors, found.n) == (None, None, None, (), 48)
    assert (found.task.name, found.task.kind, found.perplexity) == ("bundled", "classification", None)


@pytest.fixture(scope="module")
def cut() -> Evaluation:
    return evaluate(EvaluateRequest("stdlib-bert", choice=PlanChoice(keep=0.3), samples=48), SESSION)


def test_a_plan_is_compared_with_its_dense_model(cut: Evaluation) -> None:
    assert cut.method == "svd" and cut.plan and cut.plan.keep <= 0.3 and cut.against == "stdlib-bert"
    assert cut.kl and cut.agreement and cut.kl.value > 0.01 and 0 < cut.agreement.value < 1
    assert len(cut.layer_errors) == 5 and cut.layer_errors[0].error >= cut.layer_errors[-1].error > 0
    whole = evaluate(EvaluateRequest("stdlib-bert", choice=PlanChoice(keep=1.0), samples=48), SESSION)
    assert whole.kl and whole.agreement and whole.kl.value < 1e-9 and whole.agreement.value == 1
    assert (
        all(layer.error == 0 for layer in whole.layer_errors) and whole.scores[0].value > cut.scores[0].value
    )


def test_a_compressed_folder_scores_what_it_scored_before_it_was_saved(
    cut: Evaluation, tmp_path: Path
) -> None:
    loaded = load("stdlib-bert")
    plan = uniform(loaded.shape, 0.3)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    flashsvd.build(loaded, "flash", factors, plan).save_pretrained(tmp_path)
    with pytest.raises(FlashSVDError, match="no sets of its own"):
        evaluate(EvaluateRequest(str(tmp_path)), SESSION)
    found = evaluate(EvaluateRequest(str(tmp_path), samples=48, against="stdlib-bert"), SESSION)
    assert found.scores == cut.scores and found.plan == cut.plan and found.method == "svd"
    assert found.kl and cut.kl and found.kl.value == pytest.approx(cut.kl.value, rel=1e-4)
    assert found.model.parameters == cut.model.parameters == loaded.parameters
    with pytest.raises(InputError, match="already compressed"):
        evaluate(EvaluateRequest(str(tmp_path), choice=PlanChoice(keep=0.5)), SESSION)


def test_a_decoder_has_a_perplexity(folders: dict[str, Path]) -> None:
    request = EvaluateRequest(
        str(folders["llama"]), str(folders["text"]), choice=PlanChoice(keep=0.4), window=16, stride=8, batch=4
    )
    found = evaluate(request, SESSION)
    assert found.perplexity and found.scores[0] == found.perplexity.metric(0)
    assert (found.perplexity.window, found.perplexity.stride) == (16, 8)
    assert found.kl and found.kl.value > 1e-3 and found.kl.n == found.perplexity.tokens
    dense = evaluate(dataclasses.replace(request, choice=None), SESSION)
    assert dense.perplexity and dense.perplexity.tokens == found.perplexity.tokens and dense.kl is None
    assert dense.perplexity.value != found.perplexity.value
    few = evaluate(dataclasses.replace(request, choice=None, samples=3), SESSION)
    assert few.n == 16 + 2 * 8


def test_a_regression_is_scored_by_correlation(folders: dict[str, Path]) -> None:
    spec = f"{folders['text']}:label=score"
    found = evaluate(EvaluateRequest(str(folders["regression"]), spec, choice=PlanChoice(keep=0.4)), SESSION)
    assert [metric.name for metric in found.scores] == ["pearson", "spearman"] and found.kl is None


def test_json_holds_everything(cut: Evaluation) -> None:
    data = json.loads(json.dumps(to_json(cut)))
    assert data["scores"][0]["name"] == "accuracy" and RankPlan.from_json(data["plan"]) == cut.plan
    assert set(data) == {field.name for field in dataclasses.fields(Evaluation)}


def test_progress_rises_and_may_cancel(folders: dict[str, Path]) -> None:
    seen: list[float] = []
    request = EvaluateRequest(str(folders["classes"]), str(folders["text"]), choice=PlanChoice(keep=0.5))
    evaluate(request, Session(), lambda stage, share: seen.append(share))
    assert seen[0] == 0 and seen[-1] == 1 and seen == sorted(seen)

    def cancel(stage: str, share: float) -> None:
        if stage.startswith("Scoring"):
            raise flashsvd.errors.Cancelled("enough")

    with pytest.raises(flashsvd.errors.Cancelled):
        evaluate(request, SESSION, cancel)


def test_a_model_that_gives_nan_fails_the_run(folders: dict[str, Path]) -> None:
    session = Session()
    loaded = session.model(str(folders["classes"]), "fp32", "cpu", True)
    loaded.model.classifier.bias.data.fill_(math.nan)
    with pytest.raises(FlashSVDError, match="logits are not finite in batch 1"):
        evaluate(EvaluateRequest(str(folders["classes"]), str(folders["text"]), device="cpu"), session)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"stride": -1}, "stride must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"task": "imdb"}, "unknown task 'imdb'"),
        ({"task": "glue/sst2"}, "glue/sst2 has 2 classes"),
        ({"task": "wikitext-2"}, "needs a causal language model, got BertForSequenceClassification"),
        ({"task": "harness:hellaswag"}, "needs a causal language model"),
        ({"task": None}, "no sets of its own: name a task"),
        ({"device": "tpu"}, "device must be"),
        ({"against": "nonesuch/"}, "unknown model"),
        ({"against": "electra-small"}, "random weights"),
        ({"method": "nonesuch", "choice": PlanChoice(keep=0.5)}, "method"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    folders: dict[str, Path], changes: dict[str, Any], said: str
) -> None:
    request = EvaluateRequest(str(folders["classes"]), str(folders["text"]))
    with pytest.raises(FlashSVDError, match=said) as caught:
        evaluate(dataclasses.replace(request, **changes), SESSION)
    assert "\n" not in str(caught.value)


def test_a_task_that_cannot_be_had_stops_before_the_work(folders: dict[str, Path]) -> None:
    seen: list[str] = []
    request = EvaluateRequest(str(folders["classes"]), "imdb", choice=PlanChoice(keep=0.5))
    with pytest.raises(InputError):
        evaluate(request, Session(), lambda stage, share: seen.append(stage))
    assert set(seen) == {"Loading the model"}


def test_models_and_tasks_that_do_not_go_together(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="wants labels of whole texts, which a LlamaForCausalLM"):
        evaluate(EvaluateRequest(str(folders["llama"]), "glue/sst2"), SESSION)
    with pytest.raises(ModelError, match="random weights"):
        evaluate(EvaluateRequest("electra-small", "wikitext-2"), SESSION)
    with pytest.raises(InputError, match=r"gives 17 classes and .* 3"):
        evaluate(
            EvaluateRequest(str(folders["classes"]), str(folders["text"]), against="stdlib-bert"), SESSION
        )


# The command


def run(*words: str) -> str:
    application = typer.Typer(pretty_exceptions_enable=False)
    application.command("evaluate")(command)
    found = CliRunner().invoke(application, list(words), catch_exceptions=True)
    if found.exception is not None:
        raise found.exception
    return found.stdout


def test_the_table_shows_every_score_with_interval_size_and_floor() -> None:
    out = run("stdlib-bert", "--keep", "0.5", "--samples", "40")
    for word in (
        "accuracy",
        "macro_f1",
        "matthews",
        "kl to stdlib-bert",
        "agreement to",
        " to ",
        "40",
        "floor",
        "L",
    ):
        assert word in out
    assert "keep 0.49" in out and "largest relative output errors" in out


def test_json_is_one_object(folders: dict[str, Path]) -> None:
    out = run(str(folders["llama"]), "--task", str(folders["text"]), "--window", "16", "--json")
    assert json.loads(out)["perplexity"]["window"] == 16
    assert "tokens in windows of 16" in run(
        str(folders["llama"]), "--task", str(folders["text"]), "--window", "16"
    )


def test_two_plans_are_one_too_many() -> None:
    with pytest.raises(InputError, match="give one of"):
        run("stdlib-bert", "--keep", "0.5", "--ranks", "1,2,3")


# The harness


def choices(folder: Path) -> dict[str, object]:
    """A task of two answers, one right, over a local file."""
    rows = [{"q": f"w{n} w{n + 1}", "choices": ["w1", "w2"], "a": n % 2} for n in range(12)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }


@pytest.mark.slow
def test_the_harness_runs_our_models(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Dense, and low-rank where nothing is lost: the same answers; and those of log-probabilities by hand."""
    pytest.importorskip("lm_eval")
    from flashsvd.evaluation.harness import run_harness

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded: LoadedModel = load(str(folders["llama"]))
    plan = RankPlan.full_rank(loaded.shape)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    task = choices(tmp_path)
    found = [
        run_harness(model, loaded.tokenizer, [task], limit=8, batch=4, seed=1)
        for model in (loaded.model, flashsvd.build(loaded, "lowrank", factors, plan))
    ]
    assert found[0] == found[1] and len(found[0]) == 1
    assert capfd.readouterr().out == ""
    metric = found[0][0]
    right = 0
    for n in range(8):
        ids = torch.tensor([loaded.tokenizer(f"w{n} w{n + 1}")["input_ids"]])  # type: ignore[misc]
        logits = loaded.model(input_ids=ids).logits[0, -1]  # type: ignore[operator]
        right += int(logits[4] < logits[5]) == n % 2
    assert (metric.name, metric.n, metric.seed, metric.floor) == ("tiny_choice/acc", 8, 1, None)
    assert metric.value == right / 8 and metric.low < metric.value < metric.high


def test_harness_names(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from flashsvd.evaluation.harness import run_harness

    llama = load(str(folders["llama"]))
    for names, said in (
        (["/tmp/task.yaml"], "is a name such as hellaswag"),
        ([], "name at least one"),
    ):
        with pytest.raises(InputError, match=said):
            run_harness(llama.model, llama.tokenizer, names)
    with pytest.raises(InputError, match="limit must be at least 1"):
        run_harness(llama.model, llama.tokenizer, ["hellaswag"], limit=0)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"needs the package lm-eval: pip install 'flashsvd\[eval\]'"):
        evaluate(EvaluateRequest(str(folders["llama"]), "harness:hellaswag"), SESSION)


@pytest.mark.long
def test_an_unknown_harness_task_is_one_line(folders: dict[str, Path]) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="the harness has no task nonesuch"):
        evaluate(EvaluateRequest(str(folders["llama"]), "harness:nonesuch"), SESSION)
