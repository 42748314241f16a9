"""Texts that ship are read back as they were written, and anything else is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.classification.pair import ClassPair
from flashsvd.errors import InputError
from flashsvd.generation.examples import PROMPTS, SNIPPETS
from flashsvd.generation.pair import TextPair
from flashsvd.generation.recorded import path_of, read, recorded, write
from flashsvd.paths import bundled_models


@pytest.mark.parametrize("model", bundled_models())
def test_every_bundled_model_ships_one_that_round_trips(model: str, tmp_path: Path) -> None:
    found = recorded(model)
    assert found is not None
    request, result = found
    assert request.model == result.model == model and request.choice.plan == result.plan
    write(found, tmp_path / "again.json")
    assert read(tmp_path / "again.json") == found
    assert (tmp_path / "again.json").read_bytes() == path_of(model).read_bytes()


def test_what_ships_is_whole() -> None:
    found = {model: recorded(model) for model in ("stdlib-llama", "stdlib-bert")}
    text, verdict = (result[1] for result in found.values() if result is not None)
    assert isinstance(text, TextPair) and isinstance(verdict, ClassPair)
    assert text.prompt == next(iter(PROMPTS.values())) and verdict.text == next(iter(SNIPPETS.values()))
    assert len(text.places) == len(text.dense.tokens) == len(text.dense.pieces) == 64
    assert "".join(text.dense.pieces) == text.dense.text and text.agreement and text.kl
    assert text.agreement.value == sum(place.agrees for place in text.places) / 64
    assert sum(verdict.dense) == pytest.approx(1) and len(verdict.classes) == len(verdict.compressed) == 17


def test_others_ship_none() -> None:
    for name in ("gpt2", "someone/some-model", "../stdlib-bert", ""):
        assert recorded(name) is None


@pytest.mark.parametrize(
    "held",
    [
        "",
        "[]",
        "3",
        json.dumps({"format": "flashsvd-text/9"}),
        json.dumps({"format": "flashsvd-text/1", "kind": "pickle"}),
        json.dumps({"format": "flashsvd-text/1", "kind": "text", "request": {}, "result": {}}),
        json.dumps({"format": "flashsvd-text/1", "kind": ["text"], "request": {}, "result": {}}),
    ],
)
def test_anything_else_is_one_line(held: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(held)
    with pytest.raises(InputError, match=r"x\.json is no recorded text") as error:
        read(tmp_path / "x.json")
    assert "\n" not in str(error.value)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("held") / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read(path)
