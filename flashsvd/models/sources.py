"""Model names -> where the model is: bundled, preset, local folder or hub id. No torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from flashsvd.errors import ModelError
from flashsvd.models.family import families, family_of
from flashsvd.models.shape import ModelShape
from flashsvd.paths import assets, bundled_models

Kind = Literal["bundled", "preset", "local", "hub"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Where one model comes from. `folder` is set for bundled and local models."""

    name: str
    kind: Kind
    title: str
    folder: Path | None = None


def catalogue() -> list[Source]:
    """Every model that needs no download: the bundled ones, then the presets."""
    bundled = [
        Source(name, "bundled", f"{name}, trained", assets() / "models" / name) for name in bundled_models()
    ]
    presets = [
        Source(name, "preset", preset.title)
        for _, family in sorted(families().items())
        for name, preset in family.presets.items()
    ]
    return bundled + presets


def resolve(name: str) -> Source:
    """Finds what a name means; a hub id is only recognised here, not fetched.

    Raises:
        ModelError: the name is none of these.
    """
    known = {source.name: source for source in catalogue()}
    if name in known:
        return known[name]
    folder = Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder {name} holds no config.json: expected a model saved by save_pretrained")
        return Source(name, "local", folder.name, folder)
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(f"unknown model {name!r}: no such folder; {known_names()}")
    return Source(name, "hub", name)


def streams(source: Source) -> bool:
    """Whether the flash engine runs models of a source that is on this machine."""
    return family_of(model_type_of(source)).stream is not None


def known_names() -> str:
    """A clause for error messages: what can be named without a download."""
    return "expected one of " + ", ".join(source.name for source in catalogue()) + ", a folder or a hub id"


def shape_of(source: Source) -> ModelShape | None:
    """The shape of a source from its configuration alone, per head; None where only loading it can tell.

    Raises:
        ModelError: a folder whose config.json cannot be read, or of an architecture without a family.
    """
    if source.kind == "hub":
        return None
    family = family_of(model_type_of(source))
    if source.folder is None:
        config = dict(family.presets[source.name].config)
    else:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    try:
        return family.shape(SimpleNamespace(**config))
    except (AttributeError, TypeError, ZeroDivisionError):
        # transformers knows defaults that the file leaves out.
        return None


def model_type_of(source: Source) -> str:
    """The model_type of a source that is on this machine.

    Raises:
        ModelError: config.json cannot be read or names no model_type.
    """
    if source.folder is None:
        for family in families().values():
            if source.name in family.presets:
                return family.model_type
        raise ModelError(f"{source.name} is not on this machine")
    path = source.folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a model configuration ({error!r}); save the model again") from None
