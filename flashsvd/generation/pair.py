"""Two models that write on after one prompt: what is asked for, and what came. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.errors import InputError
from flashsvd.ranks import RankPlan
from flashsvd.results import Machine, Metric, PlanChoice, Quantiles

MOST_NEW = 512
"""New tokens that one pair is asked for at most."""


@dataclass(frozen=True)
class PairRequest:
    """The dense model and the compressed one on the flash engine, on one prompt and with the same draws.

    prompt_tokens: where it is not 0, so many random tokens in the place of a text. temperature 0 takes the most likely
    token always; top_p: draw among the most likely tokens that have this probability together.
    """

    model: str
    choice: PlanChoice
    prompt: str = ""
    prompt_tokens: int = 0
    method: str = "svd"
    per_head: bool = True
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    dtype: str = "fp32"
    device: str = "auto"

    def check(self) -> None:
        """Raises InputError for what no model could write."""
        if not self.prompt_tokens and not self.prompt.strip():
            raise InputError("the prompt is empty: give the text to go on from")
        if not 1 <= self.max_new_tokens <= MOST_NEW:
            raise InputError(f"new tokens must be from 1 to {MOST_NEW}, got {self.max_new_tokens}")
        if self.prompt_tokens < 0:
            raise InputError(f"prompt tokens must be at least 1, got {self.prompt_tokens}")


@dataclass(frozen=True)
class Side:
    """One model's text. pieces: the text of every token; a character of several tokens is in the last of them. Empty
    without a tokenizer. cold_rate: tokens a second while there was only the first, from weights in memory; steady_rate:
    of those after it, None where there was one."""

    engine: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    ended: str
    cold_rate: float
    steady_rate: float | None
    first_seconds: float
    step_ms: Quantiles | None
    weight_bytes: int
    cache_bytes: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Place:
    """One token of the dense text, with the next tokens that each model held most likely there, the dense text before
    it given to both: their text and probability. kl: KL(dense ‖ compressed) in nats."""

    piece: str
    kl: float
    agrees: bool
    dense: tuple[tuple[str, float], ...]
    compressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextPair:
    """What came of a PairRequest. places, agreement and kl: over the dense text; none for random weights. agreement:
    share of places with the same most likely token; kl: mean in nats a token. `created` is UTC, ISO 8601."""

    created: str
    machine: Machine
    model: str
    trained: bool
    method: str
    plan: RankPlan
    prompt: str
    prompt_tokens: int
    dense: Side
    compressed: Side
    places: tuple[Place, ...]
    agreement: Metric | None
    kl: Metric | None
    seed: int
    dtype: str
    prefill: str
