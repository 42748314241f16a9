"""Perplexity of a causal language model on one run of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.measure.intervals import DRAWS, chunks, percentiles
from flashsvd.results import Metric
from flashsvd.stats.accumulate import wide

_LOGIT_BYTES = 2**30
_SOFTMAX_BYTES = 2**26
_FEWEST_BLOCKS = 20


@dataclass(frozen=True)
class Perplexity:
    """exp(nll_sum / tokens), with its 95 % interval. tokens: how many were scored; nll_sum in nats."""

    value: float
    low: float
    high: float
    tokens: int
    stride: int
    window: int
    nll_sum: float

    def metric(self, seed: int = 0) -> Metric:
        """The same as a Metric. There is no floor: guessing evenly scores the size of the vocabulary."""
        return Metric(
            "perplexity", self.value, self.tokens, self.low, self.high, None, seed, counted="tokens"
        )


@dataclass(frozen=True)
class Span:
    """One call of the model: it reads tokens [start, stop) and is scored on its last `scored` predictions, those of
    tokens [stop + 1 - scored, stop + 1)."""

    start: int
    stop: int
    scored: int


def spans(tokens: int, window: int, stride: int) -> list[Span]:
    """Windows every `stride` tokens, so that every token but the first is predicted and scored exactly once.

    A token is predicted from at least window - stride + 1 tokens before it, or from all that there are.

    >>> spans(8, window=4, stride=2)
    [Span(start=0, stop=4, scored=4), Span(start=2, stop=6, scored=2), Span(start=4, stop=7, scored=1)]
    """
    found, done, start = [], 0, 0
    while done < tokens - 1:
        stop = min(start + window, tokens - 1)
        found.append(Span(start, stop, stop - done))
        done, start = stop, start + stride
    return found


@torch.inference_mode()
def perplexity(
    model: Any,
    token_ids: torch.Tensor,
    *,
    window: int,
    stride: int | None = None,
    batch: int = 1,
    seed: int = 0,
    draws: int = DRAWS,
    progress: Callable[[float], None] | None = None,
    read: Callable[[Span, torch.Tensor], None] | None = None,
) -> Perplexity:
    """Perplexity of token_ids [N] in windows of `window` tokens, one every `stride` (the window by default).

    Papers cut the text into windows side by side and score all but the first token of each; here that token is scored,
    too, from the window before it, which is what stride = window says. batch: windows a call, fewer where their logits
    would take more than 1 GiB; log-probabilities are float32, 64 MiB of them at a time. The interval is a bootstrap
    over windows, or over 20 stretches of the text where it has fewer. read: called with each span and the logits
    [scored, vocabulary] that it is scored on, for what else they can tell.

    Raises:
        InputError: a model that is not a causal language model, fewer than two tokens, or a number out of range.
        NonFiniteError: a loss is not finite; the message names the tokens, nothing is skipped.
    """
    stride = window if stride is None else stride
    _check(model, token_ids, window, stride, batch)
    nll = torch.zeros(len(token_ids) - 1, dtype=torch.float64)
    vocabulary = int(getattr(model.config, "vocab_size", 1))
    size = max(1, min(batch, _LOGIT_BYTES // (4 * vocabulary * min(window, len(token_ids)))))
    todo, done = spans(len(token_ids), window, stride), 0
    while done < len(todo):
        length = todo[done].stop - todo[done].start
        together = [span for span in todo[done : done + size] if span.stop - span.start == length]
        inputs = torch.stack([token_ids[span.start : span.stop] for span in together]).to(model.device)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
        for row, span in zip(logits, together, strict=True):
            targets = token_ids[span.stop + 1 - span.scored : span.stop + 1].to(row.device)
            scored = row[length - span.scored :]
            found = _losses(scored, targets)
            if not torch.isfinite(found).all():
                raise NonFiniteError(
                    f"the loss is not finite in tokens {span.start + 1} to {span.stop + 1}: use --dtype fp32"
                )
            nll[span.stop - span.scored : span.stop] = found
            if read:
                read(span, scored)
        done += len(together)
        if progress:
            progress(done / len(todo))
    low, high = _interval(nll.numpy(), len(todo), seed, draws)
    total = float(nll.sum())
    if total / len(nll) > 700:
        raise NonFiniteError(
            f"the mean loss is {total / len(nll):g} nats: its perplexity is beyond any number"
        )
    return Perplexity(math.exp(total / len(nll)), low, high, len(nll), stride, window, total)


def is_causal(model: Any) -> bool:
    """Whether a model predicts the next token from those before it alone; of one that is not of transformers, yes."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if not isinstance(model, transformers.PreTrainedModel):
        return True
    # An encoder's causal head sees both sides unless its configuration says is_decoder.
    both_sides = model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not model.config.is_decoder
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) and not both_sides


def check_causal(model: Any) -> None:
    """Raises InputError for a model of transformers whose tokens see those after them, or that predicts none."""
    if not is_causal(model):
        raise InputError(
            f"perplexity needs a causal language model, got {type(model).__name__}; "
            "score this one on a labelled task"
        )


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of targets [T] under logits [T, V], float64 on the CPU, a few rows at a time."""
    rows = max(1, _SOFTMAX_BYTES // (4 * logits.shape[-1]))
    parts = [
        cross_entropy(wide(some), right, reduction="none").double().cpu()
        for some, right in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _interval(nll: np.ndarray[Any, Any], windows: int, seed: int, draws: int) -> tuple[float, float]:
    """Neighbours share their text, so blocks of them are drawn, each as long as a window's stride."""
    blocks = np.array_split(nll, min(len(nll), max(windows, _FEWEST_BLOCKS)))
    sums, sizes = (np.array([f(block) for block in blocks], dtype=np.float64) for f in (np.sum, len))
    random = np.random.default_rng(seed)
    found = []
    for size in chunks(draws, len(blocks)):
        rows = random.integers(len(blocks), size=(size, len(blocks)))
        found.append(sums[rows].sum(1) / sizes[rows].sum(1))
    low, high = percentiles(np.exp(np.minimum(np.concatenate(found), 709.0)))
    return low, high


def _check(model: Any, token_ids: torch.Tensor, window: int, stride: int, batch: int) -> None:
    check_causal(model)
    if token_ids.dim() != 1 or len(token_ids) < 2:
        raise InputError(f"perplexity needs at least two tokens in a row, got shape {list(token_ids.shape)}")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    positions = getattr(model.config, "max_position_embeddings", None)
    if window < 1 or (positions is not None and window > positions):
        limit = "1 up" if positions is None else f"1 to {positions} (the positions of the model)"
        raise InputError(f"window must be from {limit}, got {window}")
    if not 1 <= stride <= window:
        raise InputError(f"stride must be from 1 to the window ({window}), got {stride}")
