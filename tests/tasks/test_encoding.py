"""Texts to batches: what is padded, what is cut, and that a model sees the same whatever the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.models.load import LoadedModel
from flashsvd.tasks import Encoded, Examples, batches, encode, token_stream
from flashsvd.tasks.encoding import pad_batches

PAIRS = Examples(("w1 w2 w3", "w4"), ("w5", "w6 w7"), (2, 0))


def test_a_pair_has_two_token_types(words: object) -> None:
    found = encode(PAIRS, words, 64)
    assert found.ids == ((2, 11, 12, 13, 3, 15, 3), (2, 14, 3, 16, 17, 3))
    assert found.types == ((0, 0, 0, 0, 0, 1, 1), (0, 0, 0, 1, 1, 1))
    assert found.labels == (2, 0)
    assert encode(PAIRS, words, 5).ids[0] == (2, 11, 3, 15, 3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 7))
def test_batches_hold_every_row_once_padded_on_the_right(lengths: list[int], size: int) -> None:
    rows = tuple((row + 1,) * length for row, length in enumerate(lengths))
    found = pad_batches(Encoded(rows, None, tuple(range(len(rows)))), size, pad_id=0)
    seen = []
    for batch in found:
        assert len(batch["labels"]) <= size
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] > 0).long())
        for ids, mask, label in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            assert tuple(ids[: mask.sum()].tolist()) == rows[int(label)] and mask[: mask.sum()].all()
            seen.append(int(label))
    assert sorted(seen) == list(range(len(rows)))
    widths = [batch["input_ids"].shape[1] for batch in found]
    assert widths == sorted(widths) and widths[-1] == max(lengths)


def test_logits_do_not_depend_on_the_batch(reading: LoadedModel) -> None:
    """Token types and padding reach the model: leaving either out moves logits a hundred times the tolerance."""

    def logits(size: int, leave_out: str = "") -> torch.Tensor:
        found = {}
        for batch in batches(PAIRS, reading, size):
            given_inputs = {k: v for k, v in batch.items() if k not in ("labels", leave_out)}
            for label, row in zip(
                batch["labels"].tolist(), reading.model(**given_inputs).logits, strict=True
            ):
                found[label] = row
        return torch.stack([found[label] for label in sorted(found)])

    torch.testing.assert_close(logits(2), logits(1), rtol=0, atol=1e-5)
    for name in ("token_type_ids", "attention_mask"):
        assert (logits(2, name) - logits(1)).abs().max() > 1e-3


def test_labels_are_of_the_kind_the_loss_wants(reading: LoadedModel, decoder: LoadedModel) -> None:
    assert batches(PAIRS, reading, 2)[0]["labels"].dtype == torch.int64
    targets = dataclasses.replace(PAIRS, labels=(0.5, 1.0))
    assert batches(targets, reading, 2)[0]["labels"].dtype == torch.float32
    assert "labels" not in batches(PAIRS, decoder, 2)[0]
    assert "labels" not in batches(dataclasses.replace(PAIRS, labels=None), reading, 2)[0]


def test_token_types_go_to_models_that_know_them(reading: LoadedModel) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    assert batches(PAIRS, reading, 2)[0]["token_type_ids"].max() == 1
    small = DistilBertConfig(vocab_size=200, dim=8, n_layers=1, n_heads=1, hidden_dim=8)
    other = dataclasses.replace(reading, model=DistilBertForSequenceClassification(small))
    assert "token_type_ids" not in batches(PAIRS, other, 2)[0]


def test_texts_are_cut_at_the_positions(reading: LoadedModel) -> None:
    long = Examples(("w1 " * 500,), None, None)
    assert batches(long, reading, 1)[0]["input_ids"].shape == (1, 64)
    assert batches(long, reading, 1, max_length=10)[0]["input_ids"].shape == (1, 10)
    with pytest.raises(InputError, match="max_length must be from 1 to 64"):
        batches(long, reading, 1, max_length=65)


def test_what_cannot_be_read_is_said(tiny: LoadedModel, reading: LoadedModel, words: object) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        batches(PAIRS, tiny, 2)
    with pytest.raises(InputError, match="batch must be at least 1"):
        batches(PAIRS, reading, 0)
    with pytest.raises(InputError, match="no examples"):
        encode(Examples((), None, None), words, 64)

    def plain(first: list[str], *_: object, **__: object) -> dict[str, object]:
        return {"input_ids": [[ord(letter) for letter in text] for text in first]}

    with pytest.raises(InputError, match="text 2 gives no token"):
        encode(Examples(("a", ""), None, None), plain, 64)


def test_a_stream_is_the_texts_end_to_end(words: object) -> None:
    stream = token_stream(Examples(("w1 w2", "w3"), None, None), words)
    assert stream.tolist() == [2, 11, 12, 13, 3]
    assert len(token_stream(Examples(("w1 " * 3000,), None, None), words)) == 3002
