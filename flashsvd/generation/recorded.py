"""Texts and verdicts that ship with a model: one JSON file each, shown before anything runs. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.errors import FlashSVDError, InputError
from flashsvd.generation.pair import PairRequest, TextPair
from flashsvd.paths import assets, bundled_models
from flashsvd.results import from_json, to_json

FORMAT = "flashsvd-text/1"

Recorded = tuple[PairRequest, TextPair] | tuple[ClassifyRequest, ClassPair]
"""What was asked, and what came."""

_KINDS: dict[str, tuple[type, type]] = {
    "text": (PairRequest, TextPair),
    "classes": (ClassifyRequest, ClassPair),
}


def path_of(model: str) -> Path:
    """Where the one that ships for a bundled model is."""
    return assets() / "recordings" / "text" / f"{model}.json"


def recorded(model: str) -> Recorded | None:
    """The one that ships for a model; None where there is none. Raises InputError where it cannot be read."""
    if model not in bundled_models() or not path_of(model).is_file():
        return None
    return read(path_of(model))


def write(found: Recorded, path: Path) -> None:
    """Keeps a request and its result."""
    request, result = found
    kind = "text" if isinstance(result, TextPair) else "classes"
    held = {"format": FORMAT, "kind": kind, "request": to_json(request), "result": to_json(result)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def read(path: Path) -> Recorded:
    """The inverse of `write`. Raises InputError for anything else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise InputError(f"expected format {FORMAT}, got {held['format']!r}")
        request, result = _KINDS[held["kind"]]
        found: Recorded = (from_json(request, held["request"]), from_json(result, held["result"]))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FlashSVDError) as error:
        raise InputError(f"{path.name} is no recorded text ({error}): record it again") from None
