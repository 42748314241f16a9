"""Dense and compressed on one prompt: each writes as it does alone, and both are compared over the dense text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashsvd.engines.build import build
from flashsvd.errors import Cancelled, FlashSVDError, InputError
from flashsvd.factors import factorise
from flashsvd.generation.ability import ability_of
from flashsvd.generation.generate import generate
from flashsvd.generation.pair import PairRequest, TextPair
from flashsvd.generation.request import GenerateRequest
from flashsvd.generation.write_pair import pieces, write_pair
from flashsvd.jobs.kinds.generate import KIND
from flashsvd.models.load import load
from flashsvd.models.sources import Source, resolve
from flashsvd.results import PlanChoice
from flashsvd.session import Session

PROMPT = "def main():\n"
HALF = PlanChoice(keep=0.5)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.fixture
def write(speaker_folder: Path, session: Session) -> Callable[..., TextPair]:
    def run(prompt: str = PROMPT, *, progress: Any = None, on_piece: Any = None, **options: Any) -> TextPair:
        settings = {"choice": HALF, "max_new_tokens": 12, "device": "cpu", **options}
        return write_pair(
            PairRequest(str(speaker_folder), prompt=prompt, **settings), session, progress, on_piece
        )

    return run


def test_each_writes_what_it_writes_alone(
    write: Callable[..., TextPair], speaker_folder: Path, session: Session
) -> None:
    pair = write()
    for engine, side in (("dense", pair.dense), ("flash", pair.compressed)):
        alone = generate(
            GenerateRequest(
                str(speaker_folder),
                (PROMPT,),
                choice=None if engine == "dense" else HALF,
                engine=engine,
                max_new_tokens=12,
                device="cpu",
            ),
            session,
        ).written[0]
        assert (side.engine, side.tokens, side.text, side.ended) == (
            engine,
            alone.tokens,
            alone.text,
            alone.ended,
        )
        assert (
            side.cold_rate > 0 and side.steady_rate and side.step_ms and side.weight_bytes > side.cache_bytes
        )
    assert pair.dense.tokens != pair.compressed.tokens
    assert pair.plan.keep == pytest.approx(0.5, abs=0.03) and pair.trained and pair.prompt_tokens > 0


def test_pieces_are_told_as_they_come_and_end_with_an_empty_one(write: Callable[..., TextPair]) -> None:
    told: list[tuple[str, str]] = []
    pair = write(on_piece=lambda engine, piece: told.append((engine, piece)))
    for engine, side in (("dense", pair.dense), ("flash", pair.compressed)):
        mine = [piece for name, piece in told if name == engine]
        assert "".join(mine) == side.text and len(mine) > 3
        assert mine[-1] == "" and all(mine[:-1])
    assert [engine for engine, _ in told] == sorted(engine for engine, _ in told), "one after the other"


def test_both_are_compared_over_the_dense_text(write: Callable[..., TextPair], speaker_folder: Path) -> None:
    pair = write()
    loaded = load(str(speaker_folder))
    from flashsvd.methods import method_named
    from flashsvd.spectra import compute

    factors = factorise(loaded, compute(loaded, method_named("svd")), pair.plan)
    compressed = build(loaded, "lowrank", factors, pair.plan)
    assert loaded.tokenizer is not None
    prompt = loaded.tokenizer(PROMPT)["input_ids"]
    written = list(pair.dense.tokens)
    expected: list[tuple[int, int]] = []
    with torch.no_grad():
        for place in range(len(written)):
            ids = torch.tensor([[*prompt, *written[:place]]])
            expected.append(tuple(int(m(ids).logits[0, -1].argmax()) for m in (loaded.model, compressed)))  # type: ignore[arg-type, misc]
    assert [dense for dense, _ in expected] == written, "the dense model agrees with its own greedy text"
    assert [place.agrees for place in pair.places] == [dense == mine for dense, mine in expected]
    assert pair.agreement and pair.kl
    assert pair.agreement.value == sum(place.agrees for place in pair.places) / 12 and pair.agreement.n == 12
    assert pair.kl.value == pytest.approx(sum(place.kl for place in pair.places) / 12)
    late = [place for place, (dense, mine) in enumerate(expected) if dense != mine]
    assert late and len(late) < 12, "a comparison one token off would not show with all or none"
    for place in pair.places:
        assert len(place.dense) == len(place.compressed) == 3 and place.dense[0][0] == place.piece


def test_all_ranks_write_the_same_and_agree_everywhere(write: Callable[..., TextPair]) -> None:
    pair = write(
        choice=PlanChoice(text="*.q: 64 *.k: 32 *.v: 32 *.o: 64 *.gate: 64 *.up: 64 *.down: 64"),
        per_head=False,
    )
    assert pair.dense.tokens == pair.compressed.tokens
    assert pair.agreement and pair.agreement.value == 1 and pair.kl and pair.kl.value < 1e-6


def test_draws_repeat_with_their_seed(write: Callable[..., TextPair]) -> None:
    drawn = [write(temperature=1.0, top_p=0.9, seed=seed).dense.tokens for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "stage", ["The dense model writes", "The compressed model writes", "Comparing over the dense text"]
)
def test_a_cancel_is_heard_in_every_part(write: Callable[..., TextPair], stage: str) -> None:
    heard: list[str] = []

    def cancel(words: str, share: float) -> None:
        assert 0 <= share <= 1
        heard.append(words)
        if words == stage:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        write(progress=cancel)
    assert heard[-1] == stage and heard.count(stage) == 1


def test_random_weights_give_speed_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch, speaker_folder: Path
) -> None:
    loaded = load(str(speaker_folder))
    preset = replace(loaded, source=Source("preset", "preset", ""), tokenizer=None)
    monkeypatch.setattr(Session, "model", lambda *_: preset)
    monkeypatch.setattr("flashsvd.generation.subject.resolve", lambda name: preset.source)
    monkeypatch.setattr(Session, "spectra", lambda *_: pytest.fail("random weights are not decomposed"))
    pair = write_pair(PairRequest("preset", HALF, prompt_tokens=9, max_new_tokens=5, device="cpu"), session)
    assert not pair.trained and pair.prompt_tokens == 9 and pair.prompt == ""
    assert pair.places == () and pair.agreement is None and pair.kl is None
    for side in (pair.dense, pair.compressed):
        assert len(side.tokens) == 5 and side.pieces == () and side.text == "" and side.steady_rate


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ("", {}, "the prompt is empty: give the text"),
        (" \n", {}, "the prompt is empty"),
        ("b c d" * 30, {}, r"prompt 1 has \d+ tokens, but the context of .* is 64"),
        ("a", {"max_new_tokens": 63}, "max-new-tokens must be at most 62"),
        ("a", {"max_new_tokens": 0}, "new tokens must be from 1 to 512, got 0"),
        ("a", {"prompt_tokens": -1}, "prompt tokens must be at least 1, got -1"),
        ("a", {"temperature": -1.0}, "temperature must be"),
        ("a", {"top_p": 2.0}, "top_p must be"),
        ("a", {"choice": PlanChoice(text="*.q: 9999")}, "rank must be"),
        ("a", {"method": "zip"}, "method must be one of"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    write: Callable[..., TextPair], prompt: str, changes: dict[str, Any], words: str
) -> None:
    told: list[str] = []
    with pytest.raises(FlashSVDError, match=words) as error:
        write(prompt, on_piece=lambda engine, piece: told.append(piece), **changes)
    assert "\n" not in str(error.value) and not told


def test_what_does_not_write_is_named(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="does not write text: expected a causal"):
        write_pair(PairRequest(str(tiny_folder), HALF, "a", device="cpu"))


def test_pieces_of_tokens_are_the_text_together() -> None:
    class Bytes:
        @staticmethod
        def decode(ids: list[int], **_: Any) -> str:
            return bytes(ids).decode(errors="replace")

    data = "aé→🙂".encode()
    found = pieces(Bytes(), list(data))
    assert "".join(found) == "aé→🙂" and len(found) == len(data) and found[:3] == ("a", "", "é")
    assert "".join(pieces(Bytes(), list(data[:-1]))) == data[:-1].decode(errors="replace")
    assert pieces(Bytes(), []) == ()


def test_a_job_sends_texts_in_parts(speaker_folder: Path, session: Session) -> None:
    parts: list[Any] = []
    request = PairRequest(str(speaker_folder), HALF, PROMPT, max_new_tokens=12, device="cpu")
    pair = KIND.run(request, session, lambda stage, share: None, parts.append)
    for engine, side in (("dense", pair.dense), ("flash", pair.compressed)):
        mine = [part for part in parts if part[0] == engine]
        assert "".join(text for _, text, _ in mine) == side.text
        assert [last for _, _, last in mine] == [False] * (len(mine) - 1) + [True]


def test_what_a_model_can_be_tried_on(speaker_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    known = {
        "stdlib-llama": "writes",
        "gpt2": "writes",
        "stdlib-bert": "classifies",
        "bert-base": "classifies",
    }
    assert {name: ability_of(resolve(name)) for name in known} == known
    assert ability_of(resolve(str(speaker_folder))) == "writes"
    assert ability_of(resolve("someone/some-model")) == "unknown"
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert ability_of(resolve(str(tmp_path))) == "neither"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": 3}')
    assert ability_of(resolve(str(tmp_path))) == "neither"
