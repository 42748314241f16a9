"""The sentence and the cards, honest in every direction."""

from __future__ import annotations

import dataclasses

import pytest

from app.words import cards, red_gate, sentence, times, winners
from flashsvd.results import Comparison, Quantiles
from tests.app import fakes


def said(result: Comparison) -> str:
    return "".join(text for text, _ in sentence(result))


def changed(result: Comparison, engine: str, **values: object) -> Comparison:
    runs = tuple(dataclasses.replace(run, **values) if run.engine == engine else run for run in result.runs)  # type: ignore[arg-type]
    return dataclasses.replace(result, runs=runs)


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (55.0, "2.0x faster"),
        (220.0, "2.0x slower"),
        (110.0, "at the same speed"),
        (111.0, "at the same speed"),
    ],
)
def test_speed_in_every_direction(ms: float, words: str) -> None:
    assert words in said(fakes.comparison(flash_ms=ms))


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (0.884, "for 0.6 points of accuracy"),
        (0.89, "at the same accuracy"),
        (0.90, "gains 1.0 points of accuracy"),
    ],
)
def test_accuracy_in_every_direction(score: float, words: str) -> None:
    assert words in said(fakes.comparison(score=score))


def test_memory_in_every_direction() -> None:
    base = fakes.comparison()
    assert "4.1 MiB of activations instead of 18," in said(base)
    more = changed(base, "flash", peak_activation_bytes=40 * fakes.MIB)
    assert "40 MiB of activations, more than the dense run's 18" in said(more)
    assert cards(more)[0].tone == "bad" and "more than dense" in cards(more)[0].note
    same = changed(base, "flash", peak_activation_bytes=18 * fakes.MIB)
    assert "18 MiB of activations, the same as dense" in said(same)
    kib = changed(base, "flash", peak_activation_bytes=512 * 1024)
    assert "512 KiB of activations instead of 18 MiB" in said(kib)


def test_a_red_or_missing_gate_never_claims_speed() -> None:
    red = fakes.comparison(flash_ms=1.0, gate=fakes.RED)
    assert "faster" not in said(red) and "no speed is claimed" in said(red)
    assert "faster" not in cards(red)[1].note
    line = red_gate(red)
    assert line and "0.3" in line and "0.0001" in line
    assert "flash" not in winners(red).split("Least")[0]
    unchecked = fakes.comparison(flash_ms=1.0, gate=None)
    assert "faster" not in said(unchecked) and "faster" not in cards(unchecked)[1].note


def test_random_weights_have_no_accuracy() -> None:
    result = fakes.comparison(info=fakes.preset_info("bert-base"))
    assert said(result).endswith("accuracy does not apply: random weights.")
    assert cards(result)[2].value == "does not apply"


def test_winners_names_whoever_wins() -> None:
    words = winners(fakes.comparison())
    assert words.startswith("Fastest: lowrank, 96.0 ms") and "Least memory: flash, 4.1 MiB" in words
    slow = changed(changed(fakes.comparison(), "lowrank", latency_ms=Quantiles(199, 200, 201)), "flash")
    assert winners(slow).startswith("Fastest: dense")


def test_times_calls_overlapping_runs_equal() -> None:
    assert times(Quantiles(8, 10, 13), Quantiles(9, 11, 14)) is None
    assert times(Quantiles(9.9, 10, 10.1), Quantiles(11.9, 12, 12.1)) == "1.2x faster"


def test_a_comparison_without_flash_says_so() -> None:
    result = fakes.comparison()
    result = dataclasses.replace(result, runs=result.runs[:1])
    assert "nothing can be compared" in said(result) and cards(result) == [] and winners(result) == ""
