"""What a generation is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.bench.ops import check_seed, check_sizes
from flashsvd.bench.random_factors import RANDOM
from flashsvd.decoding.sampling import Sampling
from flashsvd.engines.build import check_engine
from flashsvd.engines.parts import CACHES, CacheKind
from flashsvd.errors import InputError
from flashsvd.methods import method_named
from flashsvd.models.load import pick_dtype
from flashsvd.results import OWN_TEXT, Calibration, PlanChoice

MOST_NEW_TOKENS = 128
"""New tokens where none are asked for and the context has room."""


@dataclass(frozen=True)
class GenerateRequest:
    """What is asked for.

    prompts: texts, written on side by side. prompt_tokens: in the place of texts, prompts of that many random tokens;
    an end of text does not end what follows. choice: the ranks, 0.5 of the parameters if None; a compressed folder has
    its own. method: as in `flashsvd.methods`, or "random". max_new_tokens: 128, or what the context has room for, if
    None. temperature: 0 takes the most likely token always. top_k, top_p: draw among so many, or so much of the
    probability. stop: texts that end a sequence where they begin. cache: dense, or rank for keys and values in rank
    space where it pays.
    """

    model: str
    prompts: tuple[str, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    choice: PlanChoice | None = None
    method: str = "svd"
    per_head: bool = True
    engine: str = "flash"
    cache: CacheKind = "dense"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    dtype: str = "fp32"
    device: str = "auto"
    calibration: Calibration = OWN_TEXT

    @property
    def sampling(self) -> Sampling:
        """How tokens are picked. Raises InputError for numbers out of range."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)

    def check(self) -> None:
        """Raises InputError for what no model could write."""
        check_engine(self.engine)
        pick_dtype(self.dtype)
        if self.method != RANDOM:
            method_named(self.method)
        if self.cache not in CACHES:
            raise InputError(f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}")
        if self.cache == "rank" and self.engine != "flash":
            raise InputError(f"a cache in rank space is for the flash engine, got engine {self.engine!r}")
        if bool(self.prompts) == bool(self.prompt_tokens):
            raise InputError("give one or more prompts, or numbers of random tokens in their place")
        for place, text in enumerate(self.prompts, 1):
            if not text:
                raise InputError(f"prompt {place} is empty: give the text to go on from")
        check_sizes(
            prompt_tokens=min(self.prompt_tokens, default=1),
            max_new_tokens=1 if self.max_new_tokens is None else self.max_new_tokens,
        )
        check_seed(self.seed)
        _ = self.sampling
        if "" in self.stop:
            raise InputError("a stop text must not be empty: leave it out")
