"""A reader of words for the tiny model, and the tiny model with other heads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest

from flashsvd.models.load import LoadedModel

WithHead = Callable[..., LoadedModel]


@pytest.fixture(scope="session")
def words() -> object:
    """Splits at spaces; "wN" is token N + 10, anything else is unknown; pairs are told apart by token types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    reader = Tokenizer(
        models.WordLevel({**special, **{f"w{n}": n + 10 for n in range(150)}}, unk_token="[UNK]")
    )
    reader.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    reader.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=reader,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def reading(tiny: LoadedModel, words: object) -> LoadedModel:
    """The tiny classifier of 5 nameless classes, with a tokenizer."""
    return dataclasses.replace(tiny, tokenizer=words)


@pytest.fixture
def with_head(reading: LoadedModel) -> WithHead:
    """The same model, with a head that says it gives these classes."""

    def make(*names: str) -> LoadedModel:
        model = copy.copy(reading.model)
        model.config = copy.deepcopy(model.config)
        model.config.id2label = dict(enumerate(names))
        return dataclasses.replace(reading, model=model)

    return make


@pytest.fixture
def decoder(reading: LoadedModel) -> LoadedModel:
    """A model that gives no labels to sequences."""
    from transformers import BertForMaskedLM

    return dataclasses.replace(reading, model=BertForMaskedLM(reading.model.config))
