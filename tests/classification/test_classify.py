"""A person's own text: the probabilities are those of the models run by hand, and bad input is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flashsvd.classification.classify import classify_pair
from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.demo.tokenizer import train_tokenizer
from flashsvd.engines.build import build
from flashsvd.errors import Cancelled, FlashSVDError
from flashsvd.factors import factorise
from flashsvd.jobs.kinds.classify import KIND
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.results import PlanChoice
from flashsvd.session import Session
from flashsvd.spectra import compute

TEXT = "def main():\n    return 0\n"


@pytest.fixture(scope="module")
def reader_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier of five classes, with a tokenizer."""
    folder = tmp_path_factory.mktemp("reader")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    tokenizer = train_tokenizer([TEXT] * 3, vocab_size=280, max_length=64)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def request_of(reader_folder: Path) -> ClassifyRequest:
    return ClassifyRequest(str(reader_folder), TEXT, PlanChoice(keep=0.4), device="cpu")


def test_probabilities_are_those_of_both_models(request_of: ClassifyRequest, reader_folder: Path) -> None:
    pair = classify_pair(request_of, Session())
    loaded = load(str(reader_folder))
    assert loaded.tokenizer is not None
    given = loaded.tokenizer(TEXT, return_tensors="pt")
    factors = factorise(loaded, compute(loaded, method_named("svd")), pair.plan)
    models: tuple[Any, Any] = loaded.model, build(loaded, "lowrank", factors, pair.plan)
    with torch.no_grad():
        dense, mine = (model(**given).logits[0].softmax(-1) for model in models)
    assert pair.dense == pytest.approx(dense.tolist(), abs=1e-5)
    assert pair.compressed == pytest.approx(mine.tolist(), abs=1e-5)
    assert pair.dense != pytest.approx(mine.tolist(), abs=1e-3), (
        "one model in the other's place would be seen"
    )
    assert sum(pair.dense) == pytest.approx(1) and sum(pair.compressed) == pytest.approx(1)
    assert pair.tokens == given["input_ids"].shape[1] and len(pair.classes) == 5
    assert pair.moved == pytest.approx(0.5 * float((dense - mine).abs().sum()), abs=1e-5)
    assert KIND.run(request_of, Session(), lambda stage, share: None, lambda part: None).dense == pair.dense


def test_the_likeliest_classes_of_either_come_first(request_of: ClassifyRequest) -> None:
    pair = classify_pair(request_of, Session())
    pair = replace(pair, dense=(0.1, 0.5, 0.1, 0.3, 0.0), compressed=(0.6, 0.1, 0.1, 0.0, 0.2))
    assert pair.likeliest(4) == (0, 1, 3, 4) and pair.picked == (1, 0)
    assert isinstance(pair, ClassPair) and pair.moved == pytest.approx(0.7)


def test_a_cancel_is_heard_between_layers(request_of: ClassifyRequest) -> None:
    heard: list[str] = []

    def cancel(stage: str, share: float) -> None:
        heard.append(stage)
        if stage == "Classifying" and heard.count(stage) == 2:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        classify_pair(request_of, Session(), cancel)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": " \n"}, "the text is empty: give something to classify"),
        ({"text": "def main" * 60}, r"the text has \d+ tokens, but .* reads 64 at most: shorten it"),
        ({"model": "stdlib-llama"}, "neither writes text nor says a text's class"),
        ({"model": "no such model"}, "unknown model 'no such model'"),
        ({"choice": PlanChoice(text="*.q: 9999")}, "rank must be"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_input_is_one_line(request_of: ClassifyRequest, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FlashSVDError, match=words) as error:
        classify_pair(replace(request_of, **changes))
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_reads_nothing(tiny_folder: Path) -> None:
    with pytest.raises(FlashSVDError, match="has no tokenizer, so it cannot read text"):
        classify_pair(ClassifyRequest(str(tiny_folder), TEXT, PlanChoice(keep=0.5), device="cpu"))
