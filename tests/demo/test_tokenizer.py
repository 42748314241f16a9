"""The tokenizer loses nothing, loads offline, and treats each line alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flashsvd.demo.corpus import read_sources
from flashsvd.demo.tokenizer import encode_lines, train_tokenizer

TEXT = 'def f(x):\n\n    """Grüße → ok"""\n\treturn x[0]  # [CLS]\n'


@pytest.fixture(scope="module")
def tokenizer(fake_stdlib: Path):
    return train_tokenizer((file.text for file in read_sources(fake_stdlib)), vocab_size=400)


def test_any_text_comes_back_whole(tokenizer) -> None:
    ids = tokenizer(TEXT.replace("[CLS]", ""), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == TEXT.replace("[CLS]", "")
    assert tokenizer.unk_token_id not in ids


def test_a_saved_tokenizer_loads_and_frames_text(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = loaded(TEXT)["input_ids"]
    assert (ids[0], ids[-1]) == (loaded.cls_token_id, loaded.sep_token_id)
    assert ids == tokenizer(TEXT)["input_ids"]
    assert loaded.model_max_length == 256
    assert len(loaded(TEXT * 100, truncation=True)["input_ids"]) == 256
    assert [loaded.pad_token_id, loaded.mask_token_id] == [0, 4]


def test_the_tokens_of_lines_join_to_the_tokens_of_the_text(tokenizer, fake_stdlib: Path) -> None:
    for file in read_sources(fake_stdlib)[:5]:
        joined = [token for ids in encode_lines(tokenizer, file.lines) for token in ids]
        assert joined == tokenizer(file.text, add_special_tokens=False)["input_ids"]
