"""Runtimes of small decoders by every engine, and what transformers gives for the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.decoding.runtime import Runtime
from flashsvd.engines.build import build
from flashsvd.factors import Factors, factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

ENGINES = ("dense", "lowrank", "flash", "flash, cache in rank space")
COMPRESSED = ENGINES[1:]
IDS = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(5))
LEFT = torch.ones(3, 9, dtype=torch.bool)
LEFT[1, :4], LEFT[2, :1] = False, False
# A rank for all; one for every head; slots and heads that stay dense beside factored ones, another in every layer.
PLANS = (
    "*.qkv: 5 *.o: 20 *.up: 20 L2.down: 9",
    "*.q: 9 L1.v.h1: 3 L2.v: 12 L1.k: 3 L2.k.h1: dense *.o: 33 *.up: 24 L1.down: 40",
    "*.v: 7 L2.k: 3 L1.q: 16 L2.o: 30 L3.down: 8",
    "L1.up: 16 L2.gate: 16 L3.q: 8 L1.k: 8 L2.down: 8",
)


@dataclass(frozen=True)
class Small:
    """A small model and factors of it; `plan` None for none."""

    loaded: LoadedModel
    plan: RankPlan | None = None
    factors: Factors | None = None

    def model(self, engine: str) -> Any:
        """The model as an engine runs it."""
        name, _, cache = engine.partition(", cache in ")
        options: dict[str, Any] = {"cache": "rank"} if cache else {}
        return build(self.loaded, name, self.factors, self.plan, **options)

    def shape(self, engine: str) -> ModelShape:
        return self.loaded.shape if engine == "dense" or self.plan is None else self.plan.shape

    def runtime(self, engine: str, batch: int = 3, context: int = 80, **options: Any) -> Runtime:
        return Runtime(
            self.loaded, self.model(engine), self.shape(engine), batch=batch, context=context, **options
        )

    def reference(self, engine: str) -> Any:
        """The model whose arithmetic is transformers' own, with the same weights."""
        return self.model("dense" if engine == "dense" else "lowrank")


def small(loaded: LoadedModel, plan: str | RankPlan | None = None) -> Small:
    """plan: as text, where a model without a gate, or with one kv head, has what it can of it."""
    if plan is None:
        return Small(loaded)
    if isinstance(plan, str):
        words = plan.split()
        rules = [f"{words[i]} {words[i + 1]}" for i in range(0, len(words), 2)]
        if "gate" not in loaded.shape.slot_names:
            rules = [rule for rule in rules if "gate" not in rule]
        text = " ".join(rules)
        plan = RankPlan.from_text(
            loaded.shape, text if loaded.shape.kv_heads > 1 else text.replace(".h1", "")
        )
    return Small(loaded, plan, factorise(loaded, compute(loaded, method_named("svd")), plan))


def written(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, count: int) -> torch.Tensor:
    """What transformers' greedy search writes, [B, count]."""
    given = {} if mask is None else {"attention_mask": mask.long()}
    out = model.generate(ids, **given, max_new_tokens=count, do_sample=False, pad_token_id=0)
    found: torch.Tensor = out[:, ids.shape[1] :]
    return found


@torch.inference_mode()
def all_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of every token, by one forward without a cache, [B, S, V]."""
    given: dict[str, Any] = {}
    if mask is not None:
        given = {
            "attention_mask": mask.long(),
            "position_ids": (mask.long().cumsum(1) - 1).clamp_min(0),
        }
    found: torch.Tensor = model(ids, use_cache=False, **given).logits
    return found


def stepped(runtime: Runtime, ids: torch.Tensor, mask: torch.Tensor | None, prompt: int) -> torch.Tensor:
    """Logits of the last token of a prompt, and of every one after it, read one by one: [B, S - prompt + 1, V]."""
    found = [runtime.prefill(ids[:, :prompt], None if mask is None else mask[:, :prompt])]
    found += [runtime.step(ids[:, place]).clone() for place in range(prompt, ids.shape[1])]
    return torch.stack(found, 1)
