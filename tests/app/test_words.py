"""The sentence and the cards, honest in every direction."""

from __future__ import annotations

import dataclasses

import pytest

from app.words import cards, red_gate, score_words, sentence, times, winners
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


@pytest.mark.parametrize(
    ("flash", "words", "note", "tone"),
    [
        (4.6, "and perplexity rises from 4.10 to 4.60.", "12.2 % over dense, lower is better", "bad"),
        (4.15, "and perplexity rises from 4.10 to 4.15.", "1.2 % over dense, inside ±", "plain"),
        (4.101, "at the same perplexity.", "the same as dense", "plain"),
        (3.8, "and perplexity falls from 4.10 to 3.80.", "7.3 % under dense, lower is better", "good"),
        (5219.0, "and perplexity rises from 4.10 to 5,219.", "1273x dense, lower is better", "bad"),
    ],
)
def test_perplexity_in_every_direction(flash: float, words: str, note: str, tone: str) -> None:
    result = fakes.language(fakes.comparison(), flash)
    card = cards(result)[2]
    assert said(result).endswith(words)
    assert (card.note, card.tone, card.label) == (note, tone, "Perplexity, n = 32.8 k")
    assert "equally likely" in card.hover and "32,768 tokens" in card.hover and 0 < card.bar <= 1
    assert "%" not in card.value and "±" in card.value


def test_the_line_below_the_curve_names_its_score() -> None:
    assert score_words(fakes.metric(0.9)) == "accuracy %, 95 % band"
    assert score_words(fakes.perplexity(4.1)) == "perplexity, lower is better, log scale, 95 % band"
    assert score_words(None) == "95 % band"


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
