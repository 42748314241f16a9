"""Small byte-level BPE tokenizers in which a line is always tokenised alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CAUSAL_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 4096, max_length: int = 256
) -> PreTrainedTokenizerFast:
    """A tokenizer in BERT's manner: [CLS] and [SEP] frame a text, [MASK] hides a token."""
    from transformers import PreTrainedTokenizerFast

    core = _train_core(texts, vocab_size, SPECIAL_TOKENS)
    _frame(core, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
    )


def train_causal_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 4096, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """A tokenizer in Llama's manner: <s> comes before a text, </s> after the last line of a file."""
    from transformers import PreTrainedTokenizerFast

    core = _train_core(texts, vocab_size, CAUSAL_SPECIAL_TOKENS)
    _frame(core, "<s> $A", "<s> $A <s>:1 $B:1", ("<s>",))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        padding_side="left",
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode_lines(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> list[list[int]]:
    """Token ids of each line, without special tokens."""
    if not lines:
        return []
    return [
        encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
    ]


def _train_core(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Train on `texts`; of the special tokens, the second stands for what is unknown.

    No token reaches over a line break, so the tokens of a run of lines are the tokens of its lines joined:
    training can crop a file that was tokenised once, and a prompt may end anywhere that a line may.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token=special_tokens[1]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


def _frame(core: Tokenizer, single: str, pair: str, tokens: Sequence[str]) -> None:
    from tokenizers import processors

    core.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, core.token_to_id(token)) for token in tokens]
    )
