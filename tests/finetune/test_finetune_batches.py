"""Training examples: the same by position, whatever came before; crops and masks spare the special tokens."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.finetune.batches import EncodedExamples, TrainingOrder, collator

CLS, SEP, MASK = 1, 2, 3


def _examples(count: int = 10, *, pairs: bool = False) -> EncodedExamples:
    ids, types, special = [], [], []
    draw = random.Random(0)
    for number in range(count):
        first = [100 * (number + 1) + at for at in range(draw.randrange(4, 30))]
        second = [*range(5000, 5006), SEP] if pairs else []
        ids.append((CLS, *first, SEP, *second))
        types.append((0,) * (len(first) + 2) + (1,) * len(second))
        special.append(tuple(int(token in (CLS, SEP)) for token in ids[-1]))
    return EncodedExamples(tuple(ids), tuple(types) if pairs else None, tuple(special), tuple(range(count)))


def _order(examples: EncodedExamples, **changes: object) -> TrainingOrder:
    given = {"steps": 8, "batch": 5, "seed": 0, "mask": 0.3, "crop": 0.5, "mask_id": MASK} | changes
    return TrainingOrder(examples, **given)  # type: ignore[arg-type]


def test_an_item_needs_none_before_it() -> None:
    forwards = [_order(_examples())[at] for at in range(40)]
    order = _order(_examples())
    assert [order[at] for at in reversed(range(40))] == forwards[::-1]
    assert [_order(_examples(), seed=1)[at] for at in range(40)] != forwards


def test_every_epoch_holds_every_example_once() -> None:
    order = _order(_examples(), steps=8, batch=5)
    assert len(order) == 40
    assert set(Counter(order[at]["labels"] for at in range(40)).values()) == {4}


def test_a_batch_holds_texts_of_like_length() -> None:
    examples = _examples(64)
    order = _order(examples, steps=16, batch=8, mask=0.0, crop=1.0)
    lengths = torch.tensor([len(order[at]["input_ids"]) for at in range(128)]).reshape(16, 8)
    spread = (lengths.max(1).values - lengths.min(1).values).float().mean()
    shuffled = lengths.flatten()[torch.randperm(128, generator=torch.Generator().manual_seed(0))].reshape(
        16, 8
    )
    assert spread < 0.4 * (shuffled.max(1).values - shuffled.min(1).values).float().mean()


def test_the_same_text_is_cut_anew_each_time() -> None:
    order = _order(_examples(1), steps=8, batch=1)
    assert len({tuple(order[at]["input_ids"]) for at in range(8)}) > 4


@given(st.integers(0, 10_000), st.floats(0.1, 1.0), st.floats(0.0, 0.9), st.booleans())
def test_a_crop_is_a_stretch_and_special_tokens_stay(
    seed: int, crop: float, mask: float, pairs: bool
) -> None:
    examples = _examples(3, pairs=pairs)
    order = _order(examples, steps=1, batch=3, seed=seed, crop=crop, mask=mask)
    for at in range(3):
        item = order[at]
        whole = examples.ids[item["labels"]]
        kept = item["input_ids"]
        assert [token for token in kept if token in (CLS, SEP)] == [
            token for token in whole if token in (CLS, SEP)
        ]
        assert kept[0] == CLS and kept[-1] == SEP
        own = kept[1 : kept.index(SEP)]
        # What is not masked says where the stretch began: all of it must agree.
        starts = {token - at for at, token in enumerate(own) if token != MASK}
        assert len(starts) <= 1
        assert crop * (whole.index(SEP) - 1) - 0.5 <= len(own) <= whole.index(SEP) - 1
        if pairs:
            assert len(item["token_type_ids"]) == len(kept) and item["token_type_ids"][-1] == 1


def test_about_the_share_asked_for_is_masked() -> None:
    order = _order(_examples(50), steps=40, batch=10, mask=0.3, crop=1.0)
    tokens = [token for at in range(400) for token in order[at]["input_ids"] if token not in (CLS, SEP)]
    assert 0.28 < tokens.count(MASK) / len(tokens) < 0.32


def test_masking_needs_a_mask_token() -> None:
    with pytest.raises(InputError, match="no mask token"):
        _order(_examples(), mask_id=None)
    assert MASK not in _order(_examples(), mask_id=None, mask=0.0)[0]["input_ids"]


def test_padding_is_on_the_right_and_masked() -> None:
    batch = collator(7)(
        [
            {"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 1], "labels": 4},
            {"input_ids": [5], "token_type_ids": [0], "labels": 0},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["labels"].dtype == torch.int64
