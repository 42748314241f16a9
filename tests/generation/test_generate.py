"""Writing on after prompts: the tokens are transformers' own, every end is told apart, bad input is one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flashsvd.compression.compress import CompressRequest, compress
from flashsvd.errors import InputError, ModelError
from flashsvd.generation.generate import Generation, generate
from flashsvd.generation.request import GenerateRequest
from flashsvd.models.load import load
from flashsvd.results import PlanChoice, to_json
from flashsvd.session import Session

PROMPTS = ("def main():\n", "x = 1\nfor", "r")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.fixture
def write(speaker_folder: Path, session: Session) -> Callable[..., Generation]:
    def run(*prompts: str, on_text: Any = None, progress: Any = None, **options: Any) -> Generation:
        settings = {"prompts": prompts, "engine": "dense", "device": "cpu", "max_new_tokens": 12, **options}
        return generate(GenerateRequest(str(speaker_folder), **settings), session, progress, on_text)

    return run


def _greedy(folder: Path, prompt: str, count: int) -> list[int]:
    loaded = load(str(folder))
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    model: Any = loaded.model
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, ids.shape[1] :]]


def test_one_prompt_comes_piece_by_piece(write: Callable[..., Generation], speaker_folder: Path) -> None:
    pieces: list[tuple[int, str]] = []
    found = write(PROMPTS[0], on_text=lambda place, piece: pieces.append((place, piece)))
    (written,) = found.written
    assert list(written.tokens) == _greedy(speaker_folder, PROMPTS[0], 12)
    assert "".join(piece for _, piece in pieces) == written.text and {place for place, _ in pieces} == {0}
    assert len(pieces) > 3 and all(piece for _, piece in pieces)
    assert (written.prompt, written.ended, found.rounds) == (PROMPTS[0], "length", 12)
    assert found.first_seconds > 0 and found.step_ms and found.steady_rate and found.cold_rate
    assert found.prefill and found.weight_bytes and found.context == written.prompt_tokens + 12
    assert found.plan is None and found.method is None
    assert json.loads(json.dumps(to_json(found)))["written"][0]["text"] == written.text


def test_prompts_of_unequal_lengths_are_written_on_as_if_alone(
    write: Callable[..., Generation], speaker_folder: Path
) -> None:
    shares: list[float] = []
    found = write(
        *PROMPTS, progress=lambda stage, share: shares.append(share) if stage == "Writing" else None
    )
    assert len({written.prompt_tokens for written in found.written}) == 3
    for prompt, written in zip(PROMPTS, found.written, strict=True):
        assert list(written.tokens) == _greedy(speaker_folder, prompt, 12)
    assert shares == [pytest.approx((step + 1) / 12) for step in range(12)]


def test_a_seed_draws_the_same_again(write: Callable[..., Generation]) -> None:
    drawn = write(PROMPTS[0], temperature=1.0, seed=3).written[0]
    assert len(set(drawn.tokens)) > 6 and drawn == write(PROMPTS[0], temperature=1.0, seed=3).written[0]
    assert drawn.tokens != write(PROMPTS[0], temperature=1.0, seed=4).written[0].tokens
    greedy = write(PROMPTS[0]).written
    assert write(PROMPTS[0], temperature=1.0, top_k=1).written == greedy
    assert write(PROMPTS[0], temperature=1.0, top_p=1e-6).written == greedy


@pytest.mark.parametrize("engine", ["lowrank", "flash"])
def test_compressed_engines_write_with_their_factors(write: Callable[..., Generation], engine: str) -> None:
    full = write(
        PROMPTS[0],
        engine=engine,
        choice=PlanChoice(text="*.q: 64 *.k: 32 *.v: 32 *.o: 64 *.gate: 64 *.up: 64 *.down: 64"),
        per_head=False,
    )
    dense = write(PROMPTS[0])
    assert full.written == dense.written and full.plan and full.method == "svd"
    half = write(PROMPTS[0], engine=engine)
    assert half.written[0].tokens != dense.written[0].tokens and half.plan and "keep 0.4" in half.plan


def test_an_end_of_text_ends_one_prompt_and_not_the_others(
    write: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(*PROMPTS).written
    token = whole[1].tokens[4]
    assert token not in whole[1].tokens[:4]
    monkeypatch.setattr("flashsvd.generation.writer.end_ids", lambda loaded: frozenset({token}))
    found = write(*PROMPTS)
    for written, before in zip(found.written, whole, strict=True):
        cut = before.tokens.index(token) + 1 if token in before.tokens else 12
        assert written.tokens == before.tokens[:cut]
        assert written.ended == ("end of text" if token in before.tokens else "length")
    assert write(PROMPTS[1]).rounds == 5


def test_a_stop_text_ends_the_writing(write: Callable[..., Generation]) -> None:
    text = write(PROMPTS[0]).written[0].text
    assert text
    found = write(PROMPTS[0], stop=("never there", text[3:5]))
    assert (found.written[0].ended, found.written[0].text) == ("stop text", text[: text.index(text[3:5])])
    assert found.rounds < 12


def test_an_interrupt_keeps_what_is_there(write: Callable[..., Generation]) -> None:
    def interrupt(stage: str, share: float) -> None:
        if stage == "Writing" and share >= 0.5:
            raise KeyboardInterrupt

    found = write(*PROMPTS, progress=interrupt)
    assert [(len(written.tokens), written.ended) for written in found.written] == [(6, "interrupt")] * 3
    assert found.steady_rate and all(written.text for written in found.written)

    def at_once(stage: str, _: float) -> None:
        if stage == "Reading the prompts":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(PROMPTS[0], progress=at_once)


def test_random_tokens_stand_for_a_prompt_where_there_is_no_tokenizer(
    speaker_folder: Path, tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(speaker_folder).save_pretrained(tmp_path)
    request = GenerateRequest(
        str(tmp_path), prompt_tokens=(9, 4), max_new_tokens=5, device="cpu", engine="dense"
    )
    found = generate(request, session)
    assert [(w.prompt, w.prompt_tokens, w.text, len(w.tokens)) for w in found.written] == [
        (None, 9, None, 5),
        (None, 4, None, 5),
    ]
    again = generate(request, session)
    assert again.written == found.written
    with pytest.raises(InputError, match="has no tokenizer to read a prompt with: give --prompt-tokens N"):
        generate(replace(request, prompt_tokens=(), prompts=("x",)), session)


@pytest.mark.parametrize("engine", ["lowrank", "flash"])
def test_a_compressed_folder_writes(
    speaker_folder: Path, tmp_path: Path, session: Session, engine: str, write: Callable[..., Generation]
) -> None:
    folder = tmp_path / "half"
    choice = PlanChoice(keep=0.5)
    compress(
        CompressRequest(model=str(speaker_folder), out=folder, choice=choice, per_head=False, device="cpu")
    )
    request = GenerateRequest(str(folder), (PROMPTS[0],), engine=engine, max_new_tokens=6, device="cpu")
    found = generate(request, session)
    direct = write(PROMPTS[0], engine="lowrank", choice=choice, per_head=False, max_new_tokens=6)
    assert found.written == direct.written and found.plan == direct.plan and found.method == "svd"
    for changes, words in (
        ({"choice": choice}, "is already compressed: leave the ranks out"),
        ({"engine": "dense"}, "its dense weights are not there: use --engine lowrank or flash"),
    ):
        with pytest.raises(InputError, match=words):
            generate(replace(request, **changes), session)


@pytest.mark.parametrize(
    ("prompts", "changes", "words"),
    [
        (("",), {}, "prompt 1 is empty: give the text"),
        (("a", ""), {}, "prompt 2 is empty"),
        ((), {}, "give one or more prompts, or numbers of random tokens"),
        (("a",), {"prompt_tokens": (3,)}, "give one or more prompts, or numbers of random tokens"),
        ((), {"prompt_tokens": (0,)}, "prompt-tokens must be at least 1, got 0"),
        (("a", "b c d" * 30), {}, r"prompt 2 has \d+ tokens, but the context of .* is 64"),
        (("a",), {"max_new_tokens": 0}, "max-new-tokens must be at least 1, got 0"),
        (
            ("a",),
            {"max_new_tokens": 63},
            r"max-new-tokens must be at most 62 after a prompt of 2 tokens .* got 63",
        ),
        (("a",), {"temperature": -0.1}, "temperature must be a number from 0, got -0.1"),
        (("a",), {"temperature": float("nan")}, "temperature must be"),
        (("a",), {"temperature": float("inf")}, "temperature must be"),
        (("a",), {"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        (("a",), {"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        (("a",), {"top_k": 0}, "top_k must be at least 1, got 0"),
        (("a",), {"seed": -1}, "seed must be from 0"),
        (("a",), {"stop": ("",)}, "a stop text must not be empty"),
        (("a",), {"engine": "warp"}, "engine must be one of dense, lowrank, flash"),
        (("a",), {"cache": "paged"}, "cache must be one of dense, rank, got 'paged'"),
        (("a",), {"cache": "rank"}, "a cache in rank space is for the flash engine, got engine 'dense'"),
        (("a",), {"choice": PlanChoice(keep=0.5)}, "the dense engine has no ranks"),
        (("a",), {"dtype": "int8"}, "dtype must be one of"),
        (("a",), {"method": "zip"}, "method must be one of"),
    ],
)
def test_bad_input_is_one_line(
    write: Callable[..., Generation], prompts: tuple[str, ...], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        write(*prompts, **changes)
    assert "\n" not in str(error.value)


def test_what_does_not_write_text_is_named_with_what_does(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"does not write text: expected a causal .* llama, .*; another is one file"
    ):
        generate(GenerateRequest(str(tiny_folder), ("a",), device="cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    words = "architecture 'mamba' is not supported yet: .* write flashsvd/models/families/mamba.py"
    with pytest.raises(ModelError, match=words):
        generate(GenerateRequest(str(tmp_path), ("a",), device="cpu"))


def test_as_much_is_written_as_the_context_has_room_for(write: Callable[..., Generation]) -> None:
    found = write("a", max_new_tokens=None)
    assert found.rounds == 62 and found.context == 64
