"""A few steps on the miniature library, end to end: everything written, everything loads, the card is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from flashsvd.demo.card import DemoReport
from flashsvd.demo.corpus import read_sources, split_by_file
from flashsvd.demo.learn import Recipe
from flashsvd.demo.train import main, train_stdlib_bert
from flashsvd.errors import InputError


@pytest.fixture(scope="module")
def trained(
    fake_stdlib: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DemoReport, list[str]]:
    out = tmp_path_factory.mktemp("models") / "stdlib-bert"
    stages: list[str] = []
    report = train_stdlib_bert(
        out,
        stdlib=fake_stdlib,
        device="cpu",
        recipe=tiny,
        progress=lambda stage, done, total: stages.append(stage.split()[0]),
    )
    return out, report, stages


def test_the_folder_holds_everything_and_nothing_is_left_beside_it(trained) -> None:
    out, report, stages = trained
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "evaluation.parquet",
        "calibration.parquet",
    }
    assert [entry.name for entry in out.parent.iterdir()] == ["stdlib-bert"]
    assert list(dict.fromkeys(stages)) == ["reading", "language", "families", "checking"]
    assert (out / "model.safetensors").stat().st_size < 2 * report.parameters + 20_000


def test_it_loads_as_float32_and_scores_what_the_card_says(trained) -> None:
    out, report, _ = trained
    model = AutoModelForSequenceClassification.from_pretrained(out, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "asyncio", 1: "email"}

    table = pd.read_parquet(out / "evaluation.parquet")
    batch = tokenizer(table.text.tolist(), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    accuracy = (hits.numpy() == table.label.to_numpy()).mean()
    assert report.accuracy == pytest.approx(accuracy)
    assert report.accuracy_low < accuracy <= report.accuracy_high
    assert report.accuracy > 0.8, "two families with no word in common should be learnt in 60 steps"


def test_the_tables_keep_the_halves_apart(trained, fake_stdlib: Path) -> None:
    out, report, _ = trained
    split = split_by_file(read_sources(fake_stdlib))
    evaluation, calibration = (
        pd.read_parquet(out / f"{name}.parquet") for name in ("evaluation", "calibration")
    )
    assert list(evaluation.columns) == list(calibration.columns) == ["text", "label", "family", "source"]
    assert set(evaluation.source) <= {file.path for file in split.evaluation}
    assert set(calibration.source) <= {file.path for file in split.train}
    assert (evaluation.label.map(lambda label: split.families[label]) == evaluation.family).all()
    assert report.majority_accuracy == evaluation.family.value_counts(normalize=True).max()


def test_the_card_and_its_machine_form_agree(trained) -> None:
    out, report, _ = trained
    card = json.loads((out / "card.json").read_text())
    readme = (out / "README.md").read_text()
    assert card["accuracy"] == report.accuracy
    assert card["python"] == "3.99"
    assert sum(row["eval_pieces"] for row in card["families"]) == card["eval_pieces"]
    for said in (f"{report.accuracy:.1%}", report.split_sha256, report.command, "PSF", "| asyncio |"):
        assert said in readme


def test_a_second_run_replaces_the_first_and_gives_the_same(trained, fake_stdlib: Path, tiny: Recipe) -> None:
    out, report, _ = trained
    again = train_stdlib_bert(out, stdlib=fake_stdlib, device="cpu", recipe=tiny)
    same = replace(again, seconds=report.seconds)
    assert same == report


def test_a_folder_of_something_else_is_left_alone(fake_stdlib: Path, tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        train_stdlib_bert(tmp_path, stdlib=fake_stdlib, device="cpu", recipe=tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("flag", "value", "said"), [("--steps", "0", "1 step"), ("--device", "tpu", "tpu")])
def test_bad_values_are_one_line_on_the_command_line(
    flag: str, value: str, said: str, fake_stdlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "x"), "--stdlib", str(fake_stdlib), flag, value]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
