"""SVD-LLM (arXiv 2403.07378; V2: 2503.12340): `q_proj` becomes `q_u_proj` = U and `q_v_proj` = V.

The V of v is `v_v_proj`: names are made from the slots, never cut out of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.checkpoints.base import Importer, Keys, Pair, Pairs, Source, Target, endings
from flashsvd.checkpoints.two_linears import lay_out_two, read_two

if TYPE_CHECKING:
    import torch


def _left(path: str) -> str:
    """
    >>> _left("layers.0.self_attn.v_proj"), _left("layers.0.fc1")
    ('layers.0.self_attn.v_u_proj', 'layers.0.fc1_u_proj')
    """
    return f"{path.removesuffix('_proj')}_u_proj"


def _right(path: str) -> str:
    return f"{path.removesuffix('_proj')}_v_proj"


def _claims(source: Source) -> bool:
    return endings(source, ("_u_proj.weight", "_v_proj.weight"))


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    return read_two(keys, target, _left, _right)


def _lay_out(target: Target, pairs: Pairs) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return lay_out_two(target, pairs, _left, _right), {}


IMPORTER = Importer("svd_llm", "SVD-LLM", "arXiv 2403.07378", _claims, _read, _lay_out)
