"""The training loop of the demo language model: the next token, on windows cut anywhere in the training half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashsvd.demo.corpus import SourceFile
from flashsvd.demo.descent import Progress, descend
from flashsvd.demo.tokenizer import encode_lines

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class LanguageRecipe:
    """Everything that shapes the checkpoint besides the data and the seed. Lengths are in tokens.

    bos_share: of the windows, how many begin with <s>, as a prompt does; the others begin as a window in the middle
    of a longer text does.
    """

    steps: int = 5400
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    bos_share: float = 0.5
    context: int = 512
    layers: int = 6
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 704
    vocab: int = 4096
    shortest: int = 300
    longest: int = 500
    eval_share: float = 0.1
    eval_per_family: int = 32
    calibration_pieces: int = 512
    duplicate_share: float = 0.2


def token_run(
    files: Sequence[SourceFile], tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Tensor:
    """All files one after another as token ids [N], </s> after each."""
    end = int(tokenizer.get_vocab()["</s>"])
    ids = [
        token for file in files for line in [*encode_lines(tokenizer, file.lines), [end]] for token in line
    ]
    return torch.tensor(ids).to(device)


def next_token_windows(
    run: Tensor, n_windows: int, *, length: int, bos: int, bos_share: float, generator: torch.Generator
) -> Tensor:
    """Windows [B, length] from anywhere in a run of tokens [N]; in a share of them <s> stands for the first token."""
    device = run.device
    start = torch.randint(0, max(len(run) - length, 1), (n_windows, 1), device=device, generator=generator)
    ids = run[(start + torch.arange(length, device=device)).clamp(max=len(run) - 1)]
    framed = torch.rand(n_windows, device=device, generator=generator) < bos_share
    ids[:, 0] = ids[:, 0].masked_fill(framed, bos)
    return ids


def learn_next_token(
    model: LlamaForCausalLM, run: Tensor, recipe: LanguageRecipe, *, seed: int, progress: Progress
) -> None:
    """Fit `model` on windows of one token more than its context, of which every token but the first is predicted."""
    generator = torch.Generator(run.device).manual_seed(seed)
    bos = int(model.config.bos_token_id or 0)

    def loss_of_batch() -> Tensor:
        ids = next_token_windows(
            run,
            recipe.batch,
            length=recipe.context + 1,
            bos=bos,
            bos_share=recipe.bos_share,
            generator=generator,
        )
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    model.train()
    with _dropout(model, recipe.dropout):
        descend(
            loss_of_batch,
            model.named_parameters(),
            steps=recipe.steps,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            stage="language",
            progress=progress,
        )
    model.eval()


@contextmanager
def _dropout(model: LlamaForCausalLM, share: float) -> Iterator[None]:
    """Dropout on the embedding and on what each sublayer adds: Llama's own code has it in the attention alone."""

    def drop(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        return functional.dropout(output, share)

    layers = model.model.layers
    places = [model.model.embed_tokens, *(layer.self_attn.o_proj for layer in layers)]
    places += [layer.mlp.down_proj for layer in layers]
    handles = [place.register_forward_hook(drop) for place in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
