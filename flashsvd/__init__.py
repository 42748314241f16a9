"""FlashSVD Workbench: SVD-compressed transformers, the kernels that stream them, and pictures of what it costs.

>>> import flashsvd
>>> flashsvd.PlanChoice(keep=0.5).keep
0.5

Names are loaded when they are first used: importing this package loads no torch and touches no GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashsvd.compare import compare
    from flashsvd.compression.compress import CompressRequest, compress
    from flashsvd.curve import score_curve
    from flashsvd.engines.build import build
    from flashsvd.engines.hub import load_compressed, register
    from flashsvd.errors import FlashSVDError
    from flashsvd.evaluation.evaluate import EvaluateRequest, evaluate
    from flashsvd.factors import factorise
    from flashsvd.models.load import load
    from flashsvd.ranks import RankPlan
    from flashsvd.results import CompareRequest, CurveRequest, PlanChoice

__version__ = "0.1.0"

_HOMES = {
    "CompareRequest": "results",
    "CompressRequest": "compression.compress",
    "CurveRequest": "results",
    "EvaluateRequest": "evaluation.evaluate",
    "FlashSVDError": "errors",
    "PlanChoice": "results",
    "RankPlan": "ranks",
    "build": "engines.build",
    "compare": "compare",
    "compress": "compression.compress",
    "evaluate": "evaluation.evaluate",
    "factorise": "factors",
    "load": "models.load",
    "load_compressed": "engines.hub",
    "register": "engines.hub",
    "score_curve": "curve",
}

__all__ = [
    "CompareRequest",
    "CompressRequest",
    "CurveRequest",
    "EvaluateRequest",
    "FlashSVDError",
    "PlanChoice",
    "RankPlan",
    "build",
    "compare",
    "compress",
    "evaluate",
    "factorise",
    "load",
    "load_compressed",
    "register",
    "score_curve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
