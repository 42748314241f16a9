"""Language models on one run of tokens, beside the dense one: perplexity and divergence from one reading of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import log_softmax

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.measure.divergence import Divergence, divergence
from flashsvd.measure.perplexity import Perplexity, Span, perplexity
from flashsvd.stats.accumulate import wide

_KEPT_NUMBERS = 2**28
"""Log-probabilities of the dense model that are kept, 1 GiB; of the text beyond that it is asked again."""
_CHUNK_BYTES = 2**26

Tell = Callable[[float], None]


class Text:
    """Token ids [N], the windows they are read in (see `flashsvd.measure.perplexity`), and the dense model.

    What the dense model says is kept from its own `perplexity` on, as far as there is room.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        dense: Any,
        *,
        window: int,
        stride: int | None = None,
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        self.tokens = tokens
        self._dense = dense
        self._how: dict[str, Any] = {"window": window, "stride": stride, "batch": batch, "seed": seed}
        self._kept: dict[int, torch.Tensor] = {}

    def perplexity(self, model: Any, tell: Tell | None = None) -> Perplexity:
        """Raises what `flashsvd.measure.perplexity.perplexity` raises."""
        keep = self._keep if model is self._dense else None
        return perplexity(model, self.tokens, **self._how, progress=tell, read=keep)

    def beside_dense(self, model: Any, tell: Tell | None = None) -> tuple[Perplexity, Divergence]:
        """The same, and the divergence from the dense model over the same predictions.

        Raises:
            InputError: models of different vocabularies.
            NonFiniteError: a prediction of either is not finite; nothing is skipped.
        """
        parts: list[Divergence] = []

        def read(span: Span, logits: torch.Tensor) -> None:
            dense = self._dense_log_probabilities(span)
            if dense.shape != logits.shape:
                raise InputError(
                    f"the models predict {dense.shape[-1]} and {logits.shape[-1]} tokens: "
                    "they are not of one vocabulary"
                )
            rows = max(1, _CHUNK_BYTES // (8 * logits.shape[-1]))
            for one, other in zip(dense.split(rows), logits.split(rows), strict=True):
                parts.append(divergence([one.to(other.device)], [log_softmax(wide(other), -1)]))

        found = perplexity(model, self.tokens, **self._how, progress=tell, read=read)
        kl = torch.cat([part.kl.cpu() for part in parts])
        return found, Divergence(kl, torch.cat([part.agrees.cpu() for part in parts]))

    def _keep(self, span: Span, logits: torch.Tensor) -> None:
        held = sum(map(torch.Tensor.numel, self._kept.values()))
        if span.start not in self._kept and held + logits.numel() <= _KEPT_NUMBERS:
            self._kept[span.start] = log_softmax(wide(logits), -1).cpu()

    def _dense_log_probabilities(self, span: Span) -> torch.Tensor:
        """[scored, vocabulary] of one span."""
        if span.start in self._kept:
            return self._kept[span.start]
        ids = self.tokens[None, span.start : span.stop].to(self._dense.device)
        logits = self._dense(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -span.scored :]
        if not torch.isfinite(logits).all():
            raise NonFiniteError(
                f"logits of the dense model are not finite in tokens {span.start + 1} to {span.stop}"
            )
        return log_softmax(wide(logits), -1)
