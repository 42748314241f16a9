"""The two training loops of the demo classifier: masked language model first, families second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashsvd.demo.descent import Progress, descend
from flashsvd.demo.windows import TokenStore, hide_tokens, labelled_windows, stream_windows

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the checkpoint besides the data and the seed. Lengths are in tokens."""

    mlm_steps: int = 4000
    steps: int = 2000
    batch: int = 256
    mlm_lr: float = 1e-3
    lr: float = 3e-4
    weight_decay: float = 0.05
    dropout: float = 0.1
    label_smoothing: float = 0.05
    token_dropout: float = 0.2
    hidden_share: float = 0.2
    shortest: int = 100
    longest: int = 250
    layers: int = 6
    hidden: int = 256
    heads: int = 4
    vocab: int = 4096
    eval_per_family: int = 105
    calibration_pieces: int = 512

    @property
    def max_positions(self) -> int:
        return 256


class MaskedTokenHead(nn.Module):
    """BERT's masked-token head on chosen positions only, its output tied to the input embedding."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        width = embedding.embedding_dim
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, states: Tensor, positions: Tensor, embedding: Tensor) -> Tensor:
        """States [B, T, D] and positions [B, K] to logits [B, K, V]."""
        chosen = states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
        return functional.linear(self.transform(chosen), embedding, self.bias)


def pretrain(
    model: BertForSequenceClassification, store: TokenStore, recipe: Recipe, *, seed: int, progress: Progress
) -> None:
    """Masked language modelling on the whole training half, into the encoder of `model`."""
    device = store.tokens.device
    generator = torch.Generator(device).manual_seed(seed)
    embedding = model.bert.embeddings.word_embeddings
    head = MaskedTokenHead(embedding).to(device)

    def loss_of_batch() -> Tensor:
        ids = stream_windows(store, recipe.batch, length=recipe.max_positions - 2, generator=generator)
        inputs, positions = hide_tokens(ids, store.vocabulary, share=recipe.hidden_share, generator=generator)
        states = model.bert(input_ids=inputs).last_hidden_state
        logits = head(states, positions, embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids.gather(1, positions).flatten())

    parameters = [*model.bert.named_parameters(), *head.named_parameters()]
    model.train()
    descend(
        loss_of_batch,
        parameters,
        steps=recipe.mlm_steps,
        lr=recipe.mlm_lr,
        weight_decay=recipe.weight_decay,
        stage="language",
        progress=progress,
    )


def classify(
    model: BertForSequenceClassification, store: TokenStore, recipe: Recipe, *, seed: int, progress: Progress
) -> None:
    """Fit the families on random windows of the labelled training files."""
    device = store.tokens.device
    generator = torch.Generator(device).manual_seed(seed + 1)

    def loss_of_batch() -> Tensor:
        ids, mask, labels = labelled_windows(
            store, recipe.batch, low=recipe.shortest, high=recipe.longest, generator=generator
        )
        dropped = torch.rand(ids.shape, device=device, generator=generator) < recipe.token_dropout
        ids = torch.where(dropped & (ids >= store.vocabulary.n_special), store.vocabulary.mask, ids)
        logits = model(input_ids=ids, attention_mask=mask).logits
        return functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)

    model.train()
    parameters = list(model.named_parameters())
    descend(
        loss_of_batch,
        parameters,
        steps=recipe.steps,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        stage="families",
        progress=progress,
    )


@torch.inference_mode()
def predict(
    model: BertForSequenceClassification, encodings: list[list[int]], pad: int, *, batch: int = 64
) -> list[int]:
    """The most likely label of each encoded text, in order."""
    device = next(model.parameters()).device
    model.eval()
    predicted = [0] * len(encodings)
    by_length = sorted(range(len(encodings)), key=lambda index: len(encodings[index]))
    for start in range(0, len(by_length), batch):
        chosen = by_length[start : start + batch]
        width = max(len(encodings[index]) for index in chosen)
        ids = torch.tensor([encodings[index] + [pad] * (width - len(encodings[index])) for index in chosen])
        ids = ids.to(device)
        labels = model(input_ids=ids, attention_mask=(ids != pad).long()).logits.argmax(-1).tolist()
        for index, label in zip(chosen, labels, strict=True):
            predicted[index] = label
    return predicted
