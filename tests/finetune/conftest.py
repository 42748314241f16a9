"""A task that a tiny model learns in a second: which fifteen letters a text is written with."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flashsvd.finetune.request import FinetuneReport


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and validation.csv, text and label; no text is in both."""
    folder = tmp_path_factory.mktemp("letters")
    draw, seen = random.Random(0), set()
    for split, rows in (("train", 96), ("validation", 60)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            while rows:
                label = draw.randrange(5)
                text = " ".join(
                    chr(97 + (label * 5 + draw.randrange(9)) % 26) for _ in range(draw.randrange(8, 20))
                )
                if text not in seen:
                    seen.add(text)
                    writer.writerow([text, label])
                    rows -= 1
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForMaskedLM of random weights with a tokenizer of letters: 2 layers, 2 heads of 16."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("base")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=len(vocabulary),
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(base: Path, letters: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneReport:
    """The base trained on the letters; `request.out` is its folder."""
    from flashsvd.finetune.request import FinetuneRequest
    from flashsvd.finetune.run import finetune

    out = tmp_path_factory.mktemp("trained") / "dense"
    return finetune(
        FinetuneRequest(
            str(base), str(out), str(letters), steps=90, lr=3e-3, batch=16, eval_every=45, device="cpu"
        )
    )
