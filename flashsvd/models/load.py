"""Loads a model of transformers, safetensors only, no remote code, and describes it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from flashsvd.devices import available_bytes
from flashsvd.errors import (
    CheckpointError,
    DeviceError,
    FlashSVDError,
    InputError,
    ModelError,
    format_bytes,
)
from flashsvd.models.family import Family, family_of
from flashsvd.models.shape import ModelShape
from flashsvd.models.sources import Source, known_names, model_type_of, resolve

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A dense model with what is known of it. `evaluation` is its held-out set, where it has one."""

    source: Source
    family: Family
    shape: ModelShape
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase | None
    evaluation: Path | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def trained(self) -> bool:
        """False for random-weight presets, where accuracy does not apply."""
        return self.source.kind != "preset"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def parameters(self) -> int:
        """All parameters of the dense model."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> device.

    Raises:
        DeviceError: a GPU is asked for where there is none, or no such GPU.
        InputError: another word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError("no CUDA GPU on this machine: use --device cpu or auto")
        if (device.index or 0) >= count:
            raise DeviceError(f"no GPU {name}: this machine has cuda:0 to cuda:{count - 1}")
    return device


def pick_dtype(name: str) -> torch.dtype:
    """`fp32`, `fp16` or `bf16` -> dtype. Raises InputError for another word."""
    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    per_head: bool = True,
    seed: int = 0,
) -> LoadedModel:
    """Loads a bundled model, preset, local folder or hub id, in eval mode and without gradients.

    Args:
        name: what `flashsvd.models.sources.resolve` understands.
        per_head: describe q, k, v head by head; False for whole matrices.
        seed: for the random weights of a preset.

    Raises:
        ModelError: unknown, unreachable, unsupported, or a preset larger than the free memory.
        CheckpointError: its weights are missing, truncated, corrupt or of another shape.
    """
    source = resolve(name)
    with quiet():
        if source.kind == "preset":
            return _load_preset(source, dtype, torch.device(device), per_head, seed)
        if source.kind == "hub":
            source = fetch(source)
        return _load_folder(source, dtype, torch.device(device), per_head)


def _load_preset(
    source: Source, dtype: torch.dtype, device: torch.device, per_head: bool, seed: int
) -> LoadedModel:
    family = family_of(model_type_of(source))
    config = transformers.AutoConfig.for_model(family.model_type, **family.presets[source.name].config)
    model_class = preset_class(family)
    _check_fits(source.name, model_class, config, dtype, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = model_class.from_config(config, dtype=dtype)
    return _describe(source, family, model, None, per_head)


def preset_class(family: Family) -> Any:
    """The Auto class of a family's presets."""
    if family.task == "language":
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForSequenceClassification


def _check_fits(name: str, model_class: Any, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """A CPU grants memory that it does not have and then kills the process, so this has to be asked before."""
    with torch.device("meta"):
        needed = model_class.from_config(config, dtype=dtype).num_parameters() * dtype.itemsize
    free = available_bytes(device)
    if needed > free:
        raise ModelError(
            f"{name} takes {format_bytes(needed)} as {str(dtype).removeprefix('torch.')} but {format_bytes(free)} "
            f"is free on {device}: use a smaller model, --dtype bf16 or a larger machine"
        )


def fetch(source: Source) -> Source:
    """The same hub source with its files on this machine. Raises ModelError where that cannot be done."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            source.name,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
            etag_timeout=5,
        )
    except RepositoryNotFoundError:
        raise ModelError(
            f"unknown model {source.name!r}: the hub has no such model; {known_names()}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise ModelError(
            f"model {source.name!r} is not on this machine and the hub cannot be reached; {known_names()}"
        ) from None
    return Source(source.name, "hub", source.title, Path(folder))


def _load_folder(source: Source, dtype: torch.dtype, device: torch.device, per_head: bool) -> LoadedModel:
    folder = source.folder
    assert folder is not None
    family = family_of(model_type_of(source))
    check_safetensors(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{source.name} is already compressed: give the dense model here, "
            "or open it with flashsvd.engines.hub.load_compressed"
        )
    model = read_model(_model_class(config), folder, dtype)
    tokenizer = None
    if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return _describe(source, family, model.to(device), tokenizer, per_head)  # type: ignore[arg-type]


def _model_class(config: transformers.PretrainedConfig) -> Any:
    for architecture in config.architectures or []:
        found = getattr(transformers, architecture, None)
        if found is not None:
            return found
    return transformers.AutoModel


def check_safetensors(folder: Path) -> None:
    """Opens every safetensors file of a folder.

    Raises:
        CheckpointError: there is none, or one is truncated or corrupt.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no .safetensors file; other formats are not read: save it with safe_serialization"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is truncated or corrupt ({error}); fetch or save it again"
            ) from None


def read_model(
    model_class: Any, folder: Path, dtype: torch.dtype, config: transformers.PretrainedConfig | None = None
) -> transformers.PreTrainedModel:
    """`from_pretrained` that takes nothing for granted.

    Raises:
        CheckpointError: weights missing from the file, or of another shape than the configuration says.
    """
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except FlashSVDError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{folder} does not fit its configuration: {first_line}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights, first {missing[0]}: save the model again"
        )
    return model


def _describe(source: Source, family: Family, model: Any, tokenizer: Any, per_head: bool) -> LoadedModel:
    model.eval().requires_grad_(False)
    evaluation = source.folder / "evaluation.parquet" if source.folder else None
    return LoadedModel(
        source=source,
        family=family,
        shape=family.shape(model.config).with_per_head(per_head),
        model=model,
        tokenizer=tokenizer,
        evaluation=evaluation if evaluation and evaluation.is_file() else None,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading reports are ours to give: transformers' own go to its log only."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
