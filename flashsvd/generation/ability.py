"""What a model can be tried on, from its configuration alone. No torch."""

from __future__ import annotations

import json
from typing import Any, Literal

from flashsvd.models.family import family_of
from flashsvd.models.sources import Source, model_type_of

Ability = Literal["writes", "classifies", "neither", "unknown"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CLASSIFIER = "ForSequenceClassification"


def ability_of(source: Source) -> Ability:
    """Whether a model writes text or classifies it; "unknown" for a hub id, of which only loading it tells.

    Raises:
        ModelError: a folder whose config.json cannot be read, or of an architecture without a family.
    """
    if source.kind == "hub":
        return "unknown"
    family = family_of(model_type_of(source))
    if source.folder is None:
        return "writes" if family.task == "language" else "classifies"
    config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("architectures")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    if family.task == "language" and any(name.endswith(_CAUSAL) for name in names):
        return "writes"
    return "classifies" if any(name.endswith(_CLASSIFIER) for name in names) else "neither"
