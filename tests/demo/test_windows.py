"""Windows cut on the device are text of one training file, under the right label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashsvd.demo.corpus import Split, read_sources, split_by_file
from flashsvd.demo.tokenizer import train_tokenizer
from flashsvd.demo.windows import TokenStore, build_store, hide_tokens, labelled_windows, stream_windows

LOW, HIGH = 20, 60


@pytest.fixture(scope="module")
def split(fake_stdlib: Path) -> Split:
    return split_by_file(read_sources(fake_stdlib))


@pytest.fixture(scope="module")
def tokenizer(split: Split):
    return train_tokenizer((file.text for file in split.training_half), vocab_size=400)


@pytest.fixture(scope="module")
def store(split: Split, tokenizer) -> TokenStore:
    return build_store(split, tokenizer, torch.device("cpu"), low=LOW)


def test_a_window_is_text_of_one_file_of_its_family(split: Split, tokenizer, store: TokenStore) -> None:
    generator = torch.Generator().manual_seed(0)
    ids, mask, labels = labelled_windows(store, 200, low=LOW, high=HIGH, generator=generator)
    assert ids.shape == mask.shape == (200, HIGH + 2)
    assert abs(labels.float().mean() - 0.5) < 0.15
    for row, own_mask, label in zip(ids, own_mask_rows(mask), labels.tolist(), strict=True):
        content = row[own_mask][1:-1]
        assert row[0] == tokenizer.cls_token_id and row[own_mask][-1] == tokenizer.sep_token_id
        assert len(content) <= HIGH and (row[~own_mask] == tokenizer.pad_token_id).all()
        text = tokenizer.decode(content)
        body = text.removeprefix("class Thing:\n")
        body = body if in_family(split, label, body) else body.split("\n", 1)[1]
        assert in_family(split, label, body)


def own_mask_rows(mask: torch.Tensor) -> list[torch.Tensor]:
    return [row.bool() for row in mask]


def in_family(split: Split, label: int, text: str) -> bool:
    return any(text in file.text for file in split.train if file.family == split.families[label])


def test_windows_repeat_with_the_seed(store: TokenStore) -> None:
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return labelled_windows(store, 8, low=LOW, high=HIGH, generator=generator)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_hidden_tokens_change_only_where_they_say(store: TokenStore) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = stream_windows(store, 64, length=50, generator=generator)
    corrupted, positions = hide_tokens(ids, store.vocabulary, share=0.2, generator=generator)
    assert ids.shape == (64, 52) and positions.shape == (64, 10)
    told = torch.zeros_like(ids, dtype=torch.bool).scatter(1, positions, True)
    assert not told[:, [0, -1]].any()
    assert torch.equal(ids[~told], corrupted[~told])
    share_masked = (corrupted[told] == store.vocabulary.mask).float().mean()
    assert 0.7 < share_masked < 0.9
