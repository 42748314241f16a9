"""The language model after a few steps on the miniature library: all is written and loads, and the card is true."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flashsvd.demo.corpus import read_sources, split_by_file
from flashsvd.demo.language import LanguageRecipe, learn_next_token, next_token_windows, token_run
from flashsvd.demo.language_card import LanguageReport
from flashsvd.demo.tokenizer import train_causal_tokenizer
from flashsvd.demo.train_language import main, train_stdlib_llama
from flashsvd.errors import InputError


@pytest.fixture(scope="module")
def trained(
    fake_stdlib: Path, tiny_language: LanguageRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LanguageReport]:
    out = tmp_path_factory.mktemp("models") / "stdlib-llama"
    return out, train_stdlib_llama(out, stdlib=fake_stdlib, device="cpu", recipe=tiny_language)


def test_the_folder_holds_everything_and_nothing_is_left_beside_it(trained) -> None:
    out, report = trained
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "card.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "evaluation.parquet",
        "calibration.parquet",
    }
    assert [entry.name for entry in out.parent.iterdir()] == ["stdlib-llama"]
    assert (out / "model.safetensors").stat().st_size < 2 * report.parameters + 20_000


def test_it_loads_as_float32_and_scores_what_the_card_says(trained) -> None:
    """In windows side by side, by hand: each token predicted from those before it in its window."""
    out, report = trained
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    text = "\n\n".join(pd.read_parquet(out / "evaluation.parquet").text)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    assert ids[0] == tokenizer.bos_token_id
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, model.config.max_position_embeddings):
            part = ids[start : start + model.config.max_position_embeddings + 1]
            logits = model(input_ids=part[None, :-1]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
    held = report.held_out
    assert held.tokens == len(ids) - 1 and held.bytes == len(text.encode())
    assert held.perplexity == pytest.approx(math.exp(nats / held.tokens), rel=1e-4)
    assert held.bits_per_byte == pytest.approx(nats / math.log(2) / held.bytes, rel=1e-4)
    assert held.perplexity_low < held.perplexity < held.perplexity_high
    assert held.bits_per_byte_low < held.bits_per_byte < held.bits_per_byte_high
    assert held.perplexity < 0.5 * report.unigram_perplexity < 400, "it should learn the shape of a function"


def test_what_it_writes_ends_where_a_file_does(trained) -> None:
    out, _ = trained
    config = json.loads((out / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("</s>")
    assert config["bos_token_id"] == tokenizer.convert_tokens_to_ids("<s>")
    assert config["pad_token_id"] == tokenizer.pad_token_id == 0


def test_the_tables_keep_the_halves_apart(trained, fake_stdlib: Path, tiny_language: LanguageRecipe) -> None:
    out, report = trained
    split = split_by_file(read_sources(fake_stdlib), eval_share=tiny_language.eval_share)
    for name, files in (("evaluation", split.evaluation), ("calibration", split.train)):
        table = pd.read_parquet(out / f"{name}.parquet")
        assert list(table.columns) == ["text", "source"]
        by_path = {file.path: file.text for file in files}
        assert len(table) and all(row.text in by_path[row.source] for row in table.itertuples()), (
            "a passage is consecutive lines of one file of its half"
        )
    assert report.held_out.passages == len(pd.read_parquet(out / "evaluation.parquet"))
    # Of 20 files the largest of either family stays in training, whatever share is asked for.
    assert report.train_files + report.eval_files == 21 and report.eval_files < 20


def test_the_card_and_its_machine_form_agree(trained) -> None:
    out, report = trained
    card = json.loads((out / "card.json").read_text())
    readme = (out / "README.md").read_text()
    assert card["held_out"]["perplexity"] == report.held_out.perplexity
    assert card["python"] == "3.99" and card["sample"] == report.sample
    for said in (
        f"{report.held_out.perplexity:.2f}",
        f"{report.held_out.bits_per_byte:.3f} bits per byte",
        report.split_sha256,
        report.command,
        report.prompt,
        "PSF",
        "20% or more of its shingles",
    ):
        assert said in readme


def test_a_second_run_gives_the_same(
    trained, fake_stdlib: Path, tiny_language: LanguageRecipe, tmp_path: Path
) -> None:
    _, report = trained
    again = train_stdlib_llama(tmp_path / "m", stdlib=fake_stdlib, device="cpu", recipe=tiny_language)
    assert replace(again, seconds=report.seconds) == report


def test_windows_are_runs_of_the_files_and_some_begin_as_a_prompt_does(fake_stdlib: Path) -> None:
    files = read_sources(fake_stdlib)[:4]
    tokenizer = train_causal_tokenizer((file.text for file in files), vocab_size=400)
    run = token_run(files, tokenizer, torch.device("cpu"))
    text = "".join(file.text + "</s>" for file in files)
    assert tokenizer.decode(run) == text
    windows = next_token_windows(
        run, 200, length=20, bos=2, bos_share=0.5, generator=torch.Generator().manual_seed(0)
    )
    framed = windows[:, 0] == tokenizer.bos_token_id
    assert windows.shape == (200, 20) and 60 < int(framed.sum()) < 140
    for row in windows:
        assert tokenizer.decode(row[1:]) in text


def test_dropout_is_gone_after_training(fake_stdlib: Path, tiny_language: LanguageRecipe, trained) -> None:
    out, _ = trained
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    run = torch.randint(4, model.config.vocab_size, (500,))
    learn_next_token(
        model, run, replace(tiny_language, steps=1, dropout=0.9), seed=0, progress=lambda *_: None
    )
    assert not model.training
    assert torch.equal(model(run[None, :8]).logits, model(run[None, :8]).logits)


def test_bad_values_are_one_line_on_the_command_line(
    fake_stdlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "x"), "--stdlib", str(fake_stdlib), "--steps", "0"]) == 1
    error = capsys.readouterr().err
    assert "1 step" in error and error.count("\n") == 1
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        train_stdlib_llama(tmp_path, stdlib=fake_stdlib, device="cpu")
