"""The folder of a demo classifier: made, written, read back and moved into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from flashsvd.demo.learn import Recipe, predict
from flashsvd.demo.pieces import Piece

if TYPE_CHECKING:
    import torch
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast


def new_model(
    families: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> BertForSequenceClassification:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.hidden,
        max_position_embeddings=recipe.max_positions,
        hidden_act="gelu",
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        pad_token_id=tokenizer.get_vocab()["[PAD]"],
        id2label=dict(enumerate(families)),
        label2id={family: index for index, family in enumerate(families)},
        problem_type="single_label_classification",
    )
    return BertForSequenceClassification(config)


def save(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights are stored at half size; the config asks for float32, to which loading widens them."""
    model.half().save_pretrained(folder)
    model.float()
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def write_pieces(pieces: Sequence[Piece], families: Sequence[str], file: Path) -> None:
    import pandas as pd

    table = pd.DataFrame(
        {
            "text": [piece.text for piece in pieces],
            "label": [families.index(piece.family) for piece in pieces],
            "family": [piece.family for piece in pieces],
            "source": [piece.source for piece in pieces],
        }
    )
    table.to_parquet(file, index=False, compression="zstd")


def right_answers(
    folder: Path, pieces: Sequence[Piece], families: Sequence[str], device: torch.device
) -> list[bool]:
    """Whether each piece is told right by the checkpoint as it lies on disk."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    nn.Module.to(model, device)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encodings = tokenizer([piece.text for piece in pieces], truncation=True)["input_ids"]
    labels = predict(model, encodings, tokenizer.pad_token_id)
    return [families[label] == piece.family for label, piece in zip(labels, pieces, strict=True)]


def move_into_place(partial: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
