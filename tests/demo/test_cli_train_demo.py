"""The command: its errors, and that standard output holds the report alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from flashsvd.cli.train_demo import train_demo
from flashsvd.demo import train, train_language
from flashsvd.demo.language import LanguageRecipe
from flashsvd.demo.learn import Recipe
from flashsvd.errors import InputError


def test_the_report_is_printed_as_json(
    fake_stdlib: Path,
    tiny: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "train_stdlib_bert", partial(train.train_stdlib_bert, recipe=tiny))
    train_demo("stdlib-bert", out=tmp_path / "m", stdlib=fake_stdlib, steps=2, device="cpu", json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["recipe"]["steps"] == 2
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_the_language_model_is_told_in_one_line(
    fake_stdlib: Path,
    tiny_language: LanguageRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = partial(train_language.train_stdlib_llama, recipe=tiny_language)
    monkeypatch.setattr(train_language, "train_stdlib_llama", train)
    train_demo("stdlib-llama", out=tmp_path / "m", stdlib=fake_stdlib, steps=2, device="cpu")
    line = capsys.readouterr().out
    assert line.startswith("stdlib-llama: perplexity ") and line.count("\n") == 1
    assert "tokens)" in line and "bits per byte" in line
    assert json.loads((tmp_path / "m" / "card.json").read_text())["recipe"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "stdlib-gpt"}, "expected one of stdlib-bert, stdlib-llama, got 'stdlib-gpt'"),
        ({"name": "stdlib-bert", "steps": 0}, "--steps of 1 or more, got 0"),
        ({"name": "stdlib-bert", "seed": -1}, "--seed of 0 or more, got -1"),
    ],
)
def test_bad_values_are_refused_before_any_work(arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train_demo(**arguments)
