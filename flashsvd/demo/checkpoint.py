"""The folder of a demo checkpoint: made, written, read back and moved into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from flashsvd.demo.language import LanguageRecipe
from flashsvd.demo.learn import Recipe, predict
from flashsvd.demo.pieces import Piece
from flashsvd.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import (
        BertForSequenceClassification,
        LlamaForCausalLM,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )


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


def new_language_model(tokenizer: PreTrainedTokenizerFast, recipe: LanguageRecipe) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights are stored at half size; the config asks for float32, to which loading widens them."""
    model.half().save_pretrained(folder)
    model.float()
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def write_passages(pieces: Sequence[Piece], file: Path) -> None:
    """Plain text: what a language model is calibrated and scored on."""
    import pandas as pd

    table = pd.DataFrame(
        {"text": [piece.text for piece in pieces], "source": [piece.source for piece in pieces]}
    )
    table.to_parquet(file, index=False, compression="zstd")


def write_pieces(pieces: Sequence[Piece], families: Sequence[str], file: Path) -> None:
    """Text with labels: what a classifier is calibrated and scored on."""
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


def reopened(folder: Path, device: torch.device) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The language model and its tokenizer as they lie on disk."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    nn.Module.to(model, device)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_free(out: Path) -> None:
    """Raises InputError where a checkpoint would replace something that is none."""
    if out.exists() and not (out / "card.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"expected a new folder or an earlier checkpoint, found something else at {out}; "
            "choose another folder"
        )


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `out` when the block ends well and is gone when it does not."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        _move_into_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
