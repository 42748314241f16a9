"""The verdict on a decoder: its logits against the same weights in higher precision, and its greedy tokens."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from flashsvd.bench.decoders import Decoder, DynamicDecoder
from flashsvd.measure.fidelity import Outputs, judge
from flashsvd.results import GateReport

SEQUENCES = 4
"""Sequences of a batch that are judged at most, the first and the last among them."""

_SIGMAS = 4.0


@dataclass(frozen=True)
class Agreement:
    """Greedy tokens beside the reference's, both shown the reference's tokens before: the share that are equal, and
    how many differ by more than rounding."""

    share: float
    differences: int


@dataclass(frozen=True, eq=False)
class Standard:
    """What a model makes of prompts and `steps` tokens that follow, judged sequences alone.

    tokens [steps, R]: its greedy tokens in higher precision. exact [steps + 1, R, V]: the logits that they were picked
    from, and one more. baseline: the same places in the run's dtype. Both in float64 on the CPU. name: in words.
    """

    name: str
    tokens: torch.Tensor
    exact: torch.Tensor
    baseline: torch.Tensor


class DecodeJudge:
    """Judges prefill and steps of every row: `dense...` rows against the dense model, all others against the low-rank
    one, by transformers' own eager forward in float64 for float32 and in float32 for the halves.

    How far off is still right is what `flashsvd.measure.fidelity.judge` says of the logits, with the same engine in the
    run's dtype to compare with. Greedy tokens must be the reference's besides, but for those that rounding may turn
    (`agreement`). standards: by kind, "dense" and "lowrank".
    """

    def __init__(self, standards: dict[str, Standard], dtype: torch.dtype, sublayers: int) -> None:
        self._standards = standards
        self._dtype = dtype
        self._sublayers = sublayers
        self.agreements: dict[str, Agreement] = {}

    def __call__(self, name: str, logits: torch.Tensor) -> GateReport:
        """The report on the logits [steps + 1, R, V] of the row `name`."""
        standard = self._standards[kind_of(name)]
        mine = logits.double().cpu()
        gate = judge(
            Outputs(mine, None),
            Outputs(standard.baseline, None),
            Outputs(standard.exact, None),
            name=standard.name,
            dtype=self._dtype,
            sublayers=self._sublayers,
        )
        found = agreement(mine, standard.exact, gate.limit)
        self.agreements[name] = found
        return replace(gate, passed=gate.passed and found.differences == 0)


def kind_of(name: str) -> str:
    """Whose weights a row runs.

    >>> kind_of("dense-graph"), kind_of("flash-graph")
    ('dense', 'lowrank')
    """
    return "dense" if name.startswith("dense") else "lowrank"


def judged_rows(batch: int) -> list[int]:
    """Sequences that are judged: the first and last included, so that a kernel that leaves its last unwritten fails.

    >>> judged_rows(1), judged_rows(16)
    ([0], [0, 5, 10, 15])
    """
    count = min(batch, SEQUENCES)
    return sorted({round(index * (batch - 1) / max(1, count - 1)) for index in range(count)})


def agreement(mine: torch.Tensor, exact: torch.Tensor, limit: float) -> Agreement:
    """Compares the largest of each logits [..., V].

    Another token than the reference's counts as a difference only where the reference sets the two further apart than
    rounding may move them: an error of `limit` is one of e = limit · rms(exact) per logit, the difference of two
    errs by √2·e, and four times that is past what all comparisons of a run reach.

    >>> exact = torch.tensor([[3.0, 2.9, 0.0], [3.0, 1.0, 0.0]])
    >>> agreement(exact.flip(-1), exact, 0.02).differences
    2
    >>> agreement(torch.tensor([[2.9, 3.0, 0.0], [3.0, 1.0, 0.0]]), exact, 0.02)
    Agreement(share=0.5, differences=0)
    """
    picked, right = mine.argmax(-1, keepdim=True), exact.argmax(-1, keepdim=True)
    apart = (exact.gather(-1, right) - exact.gather(-1, picked)).squeeze(-1)
    noise = _SIGMAS * math.sqrt(2) * limit * exact.square().mean().sqrt()
    equal = (picked == right).squeeze(-1)
    return Agreement(float(equal.double().mean()), int((~equal & (apart > noise)).sum()))


def standard_of(kind: str, model: Any, ids: torch.Tensor, steps: int) -> Standard:
    """Lets a model of transformers go on greedily for `steps` tokens in higher precision.

    kind: whose weights, in words. ids [R, S]: the prompts. One sequence at a time: twice the precision must not need
    twice the memory of what is measured.
    """
    wide_dtype = torch.float64 if model.dtype == torch.float32 else torch.float32
    wide = copy.deepcopy(model).to(wide_dtype)
    exact, tokens = zip(*(_greedy(wide, prompt, steps) for prompt in ids.split(1)), strict=True)
    del wide
    following = torch.cat(tokens, 1)
    shown = torch.cat([ids, following.T], 1)
    baseline = [_last(model, row, steps + 1) for row in shown.split(1)]
    return Standard(
        f"{kind}, {'fp64' if wide_dtype == torch.float64 else 'fp32'}",
        following,
        torch.cat(exact, 1),
        torch.stack(baseline, 1),
    )


def _greedy(model: Any, prompt: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [steps + 1, 1, V] and greedy tokens [steps, 1] after a prompt [1, S]."""
    decoder = DynamicDecoder(model)
    logits = [decoder.fill(prompt)]
    for _ in range(steps):
        logits.append(decoder.step(logits[-1].argmax(-1)))
    found = torch.stack(logits)
    return found.double().cpu(), found[:-1].argmax(-1)


@torch.no_grad()
def _last(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Logits at the last `count` places of ids [1, S], [count, V]."""
    found: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=count).logits[0]
    return found.double().cpu()


def shown_tokens(ids: torch.Tensor, standard: Standard) -> torch.Tensor:
    """The standard's tokens [steps, B] for the sequences of ids [B, T] that are judged; what the others are shown is of
    no matter."""
    shown = ids[:, -1].repeat(len(standard.tokens), 1)
    shown[:, judged_rows(len(ids))] = standard.tokens
    return shown


def judged_logits(decoder: Decoder, ids: torch.Tensor, standard: Standard) -> torch.Tensor:
    """What the judge asks of a decoder: logits [steps + 1, R, V] of the prompts ids [B, S] and of steps that are shown
    the standard's tokens."""
    rows, shown = judged_rows(len(ids)), shown_tokens(ids, standard)
    logits = [decoder.fill(ids)[rows].clone()]
    logits += [decoder.step(tokens)[rows].clone() for tokens in shown]
    return torch.stack(logits)
