"""Training batches cut on the device: every file is tokenised once, every batch is a new set of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashsvd.demo.corpus import Split
from flashsvd.demo.pieces import enclosing_headers
from flashsvd.demo.tokenizer import SPECIAL_TOKENS, encode_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that batches are built with."""

    size: int
    n_special: int
    pad: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True)
class TokenStore:
    """The training half as flat token ids, with a row per line that a window can start at.

    N tokens, L lines, H header tokens. Headers of a line sit in `headers[header_start : header_start +
    header_count]`. Lines of files without a class have weight 0 and label -1.
    """

    vocabulary: Vocabulary
    tokens: Tensor  # [N]
    line_start: Tensor  # [L + 1]
    file_end: Tensor  # [L]
    label: Tensor  # [L]
    headers: Tensor  # [H]
    header_start: Tensor  # [L]
    header_count: Tensor  # [L]
    cumulative_weight: Tensor  # [L]


def build_store(
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    *,
    low: int,
    max_header_tokens: int = 64,
) -> TokenStore:
    """Tokenise the training half. Windows start at lines with at least `low` tokens left in their file."""
    labels = {family: index for index, family in enumerate(split.families)}
    tokens: list[int] = []
    line_start: list[int] = []
    file_end: list[int] = []
    label: list[int] = []
    weight: list[float] = []
    headers: list[int] = []
    header_start: list[int] = []
    header_count: list[int] = []
    for file in split.training_half:
        lines = file.lines
        encoded = encode_lines(tokenizer, lines)
        first = len(tokens)
        for ids in encoded:
            line_start.append(len(tokens))
            tokens += ids
        n_tokens = len(tokens) - first
        file_end += [len(tokens)] * len(lines)
        label += [labels[file.family] if file.family else -1] * len(lines)
        spans: dict[tuple[int, ...], tuple[int, int]] = {}
        for enclosing in enclosing_headers(lines):
            if enclosing not in spans:
                ids = [token for header in enclosing for token in encoded[header]][-max_header_tokens:]
                spans[enclosing] = len(headers), len(ids)
                headers += ids
            header_start.append(spans[enclosing][0])
            header_count.append(spans[enclosing][1])
        # The square root keeps a file of 5000 lines from drowning fifty of 100 without ignoring its size.
        share = max(n_tokens, 1) ** 0.5 / max(len(lines), 1)
        for start in line_start[len(line_start) - len(lines) :]:
            weight.append(share if file.family and len(tokens) - start >= low else 0.0)

    line_label = torch.tensor(label)
    line_weight = torch.tensor(weight, dtype=torch.float64)
    for index in range(len(split.families)):
        of_family = line_label == index
        line_weight[of_family] /= line_weight[of_family].sum()

    return TokenStore(
        vocabulary=_vocabulary(tokenizer),
        tokens=torch.tensor(tokens).to(device),
        line_start=torch.tensor([*line_start, len(tokens)]).to(device),
        file_end=torch.tensor(file_end).to(device),
        label=line_label.to(device),
        headers=torch.tensor([*headers, 0]).to(device),
        header_start=torch.tensor(header_start).to(device),
        header_count=torch.tensor(header_count).to(device),
        cumulative_weight=(line_weight.cumsum(0) / line_weight.sum()).to(device),
    )


def labelled_windows(
    store: TokenStore, n_windows: int, *, low: int, high: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of `low` to `high` tokens, families equally likely.

    Returns ids [B, high + 2], mask [B, high + 2] and labels [B]. A window is cut like an evaluation piece:
    headers, then whole lines.
    """
    device, vocabulary = store.tokens.device, store.vocabulary
    uniform = torch.rand(n_windows, dtype=torch.float64, device=device, generator=generator)
    line = torch.searchsorted(store.cumulative_weight, uniform, right=True).clamp(max=len(store.label) - 1)
    length = torch.randint(low, high + 1, (n_windows,), device=device, generator=generator)
    start, n_headers = store.line_start[line], store.header_count[line]
    limit = torch.minimum(start + length - n_headers, store.file_end[line])
    whole = store.line_start[torch.searchsorted(store.line_start, limit, right=True) - 1]
    n_body = torch.where(whole > start, whole, limit) - start

    # [B, high + 2]
    column = torch.arange(high + 2, device=device)[None, :] - 1
    body_column = column - n_headers[:, None]
    n_content = (n_headers + n_body)[:, None]
    body = store.tokens[(start[:, None] + body_column).clamp(0, len(store.tokens) - 1)]
    header = store.headers[(store.header_start[line][:, None] + column).clamp(0, len(store.headers) - 1)]
    ids = torch.where(body_column < 0, header, body)
    ids = ids.masked_fill(column == -1, vocabulary.cls).masked_fill(column == n_content, vocabulary.sep)
    mask = column <= n_content
    return ids.masked_fill(~mask, vocabulary.pad), mask.long(), store.label[line]


def stream_windows(store: TokenStore, n_windows: int, *, length: int, generator: torch.Generator) -> Tensor:
    """Runs of `length` tokens from anywhere in the training half, in [CLS] and [SEP]: [B, length + 2]."""
    device, vocabulary = store.tokens.device, store.vocabulary
    last = max(len(store.tokens) - length, 1)
    start = torch.randint(0, last, (n_windows, 1), device=device, generator=generator)
    at = (start + torch.arange(length, device=device)).clamp(max=len(store.tokens) - 1)
    edge = torch.ones(n_windows, 1, dtype=torch.long, device=device)
    return torch.cat([edge * vocabulary.cls, store.tokens[at], edge * vocabulary.sep], dim=1)


def hide_tokens(
    ids: Tensor, vocabulary: Vocabulary, *, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT's masking with as many hidden tokens in each row: corrupted ids [B, T] and positions [B, K].

    A fixed K keeps shapes static: the device never has to report a count back to the host.
    """
    n_rows, n_columns = ids.shape
    n_hidden = max(1, int(share * (n_columns - 2)))
    order = torch.rand(n_rows, n_columns - 2, device=ids.device, generator=generator)
    positions = order.topk(n_hidden, dim=1).indices + 1
    fate = torch.rand(n_rows, n_hidden, device=ids.device, generator=generator)
    noise = torch.randint(
        vocabulary.n_special, vocabulary.size, positions.shape, device=ids.device, generator=generator
    )
    hidden = torch.where(
        fate < 0.8, vocabulary.mask, torch.where(fate < 0.9, noise, ids.gather(1, positions))
    )
    return ids.scatter(1, positions, hidden), positions


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    ids = tokenizer.get_vocab()
    return Vocabulary(
        size=len(ids),
        n_special=len(SPECIAL_TOKENS),
        pad=ids["[PAD]"],
        cls=ids["[CLS]"],
        sep=ids["[SEP]"],
        mask=ids["[MASK]"],
    )
