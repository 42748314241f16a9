"""Compressed checkpoints: written by save_pretrained, read by from_pretrained, without the dense weights.

transformers has one door for checkpoints whose modules differ from the class: a quantizer. Ours lays out the
low-rank modules of the plan before the weights are read. After `register()` the Auto classes and pipeline() open a
compressed folder like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from flashsvd.engines.modules import EXCHANGED
from flashsvd.engines.parts import CacheKind
from flashsvd.errors import CheckpointError, PlanError
from flashsvd.models.family import family_of
from flashsvd.models.load import check_safetensors, quiet, read_model
from flashsvd.ranks import RankPlan

METHOD = "flashsvd"


class FactorConfig(QuantizationConfigMixin):
    """What config.json says of a compressed checkpoint: its plan, the method that made it, its engine, whether every
    factored linear has a bias of its own, and what the flash engine's caches of keys and values hold."""

    def __init__(
        self,
        plan: dict[str, Any],
        method: str = "svd",
        engine: str = "flash",
        biased: bool = False,
        cache: CacheKind = "dense",
        **_: Any,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.plan = plan
        self.method = method
        self.engine = engine
        self.biased = biased
        self.cache = cache

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "plan": self.plan,
            "method": self.method,
            "engine": self.engine,
            "biased": self.biased,
            "cache": self.cache,
        }


class FactorLoader(HfQuantizer):
    """Exchanges the linears for low-rank modules before their weights are read."""

    requires_calibration = True
    quantization_config: FactorConfig

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        from flashsvd.engines.build import exchange_linears

        config = self.quantization_config
        plan = RankPlan.from_json(config.plan)
        family = family_of(model.config.model_type)
        plan.check_fits(family.shape(model.config))
        exchange_linears(model, family, plan, biased=config.biased)
        for module in model.modules():
            if any(isinstance(child, EXCHANGED) for child in module.children()):
                # Some owners would set the .weight of a linear that is no longer there (ModernBertAttention does).
                module._is_hf_initialized = True

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from flashsvd.engines.stream import stream

        config = self.quantization_config
        model.eval().requires_grad_(False)
        if config.engine == "flash":
            shape = RankPlan.from_json(config.plan).shape
            stream(model, family_of(model.config.model_type), shape, cache=config.cache)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Teaches transformers to open compressed checkpoints. Calling it again does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(FactorConfig)
        register_quantizer(METHOD)(FactorLoader)


def mark(
    model: Any,
    plan: RankPlan,
    method: str,
    engine: str,
    *,
    biased: bool = False,
    cache: CacheKind = "dense",
) -> None:
    """Writes what `FactorConfig` says into a model's configuration, so that save_pretrained keeps it."""
    register()
    model.config.quantization_config = FactorConfig(plan.to_json(), method, engine, biased, cache)


def load_compressed(
    folder: Path | str,
    *,
    engine: str | None = None,
    cache: CacheKind | None = None,
    dtype: torch.dtype | None = None,
) -> transformers.PreTrainedModel:
    """Opens a compressed checkpoint; the dense weights are never built.

    engine: lowrank or flash. cache: of a decoder that flash runs (`flashsvd.engines.build.build`). Both are by default
    what it was saved with.

    Raises:
        CheckpointError: not a compressed checkpoint, files missing, truncated or of another shape.
    """
    from flashsvd.engines.build import check_engine

    folder = Path(folder)
    register()
    check_safetensors(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    saved = getattr(config, "quantization_config", None)
    if not isinstance(saved, dict) or saved.get("quant_method") != METHOD:
        raise CheckpointError(f"{folder} is not a compressed checkpoint: its config.json names no rank plan")
    if engine is not None:
        check_engine(engine)
        saved["engine"] = engine
    if cache is not None:
        saved["cache"] = cache
    model_class = next(
        (found for name in config.architectures or [] if (found := getattr(transformers, name, None))),
        transformers.AutoModel,
    )
    try:
        with quiet():
            return read_model(model_class, folder, dtype or config.dtype or torch.float32, config=config)
    except PlanError as error:
        raise CheckpointError(f"{folder}: {error}") from None
