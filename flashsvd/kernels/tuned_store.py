"""Tiles that were tuned on a GPU, kept on disk: one JSON file per GPU name and Triton version.

A file is data and is not trusted: what cannot be read costs one warning and counts as nothing, and tiles that this
version would not try itself are never used (`flashsvd.kernels.tuning`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flashsvd.errors import InputError
from flashsvd.paths import home

FORMAT = "flashsvd tuned tiles 1"
MOST_ENTRIES = 4096
"""The newest of a file; an entry is some 400 bytes."""
_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Entry:
    """What was found for one kind of call."""

    kernel: str
    key: str
    """All that the choice may depend on, as text."""
    tiles: Mapping[str, Any]
    """Fields of the kernel's tiles as JSON has them; the default's where nothing was faster."""
    default_us: float
    """Median time of the default tiles."""
    chosen_us: float
    date: str
    """ISO 8601, UTC."""

    @property
    def gain(self) -> float:
        """Share of the default's time that the chosen tiles save.

        >>> Entry("norm", "rows 8", {}, 10.0, 9.0, "").gain
        0.1
        """
        return round(1.0 - self.chosen_us / self.default_us, 6)


@dataclass(frozen=True)
class Store:
    """The file of one GPU and one Triton version; every call opens it anew, so any thread or process may use it."""

    gpu: str
    triton: str

    @property
    def path(self) -> Path:
        """Under `$FLASHSVD_HOME`.

        >>> Store("NVIDIA H200", "3.6.0").path.name
        'nvidia-h200-triton-3.6.0.json'
        """
        name = re.sub(r"[^a-z0-9.+]+", "-", f"{self.gpu}-triton-{self.triton}".lower()).strip("-.")
        return home() / "tuning" / f"{name}.json"

    def read(self) -> dict[tuple[str, str], Entry]:
        """Entries by kernel and key; none, and one warning, where the file cannot be used."""
        try:
            if self.path.stat().st_size > _LIMIT_BYTES:
                raise ValueError(f"it is larger than {_LIMIT_BYTES // 2**20} MiB")
            return self._parse(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            reason = (
                "it is nested too deep"
                if isinstance(error, RecursionError)
                else getattr(error, "strerror", None) or error
            )
            warn(f"tuned tiles in {self.path} are ignored: {reason}; `flashsvd tune --clear` removes them")
            return {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Adds to what is in the file by now, over older entries of the same kernel and key.

        Written whole under another name, then renamed. A folder that cannot be written to costs one warning.
        """
        added = {(entry.kernel, entry.key): entry for entry in entries}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                merged = {name: entry for name, entry in self.read().items() if name not in added} | added
                self._write(list(merged.values())[-MOST_ENTRIES:])
        except OSError as error:
            warn(f"tuned tiles were not stored in {self.path}: {error.strerror or error}")

    def clear(self) -> bool:
        """Removes the file; whether there was one. Raises InputError where it cannot be removed."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise InputError(f"cannot remove {self.path}: {error.strerror or error}") from None
        return True

    def _parse(self, found: Any) -> dict[tuple[str, str], Entry]:
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT!r}")
        for name, value in self._header().items():
            if found.get(name) != value:
                raise ValueError(f"it is of {name} {found.get(name)!r}, this is {value!r}")
        rows = found.get("entries")
        if not isinstance(rows, list):
            raise ValueError("it has no list of entries")
        entries = [entry for row in rows if (entry := _entry(row))]
        return {(entry.kernel, entry.key): entry for entry in entries}

    def _header(self) -> dict[str, str]:
        from flashsvd import __version__

        # Another version's kernels may take other tiles, or take other times with the same.
        return {"gpu": self.gpu, "triton": self.triton, "library": __version__}

    def _write(self, entries: list[Entry]) -> None:
        document = {"format": FORMAT, **self._header(), "entries": [asdict(entry) for entry in entries]}
        # In a folder of its own, so that the file itself gets the rights that any new file would.
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
            part = Path(folder) / self.path.name
            part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, where the system and the file system can do that."""
        with self.path.with_suffix(".lock").open("w") as lock:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def now() -> str:
    """The date of an entry that is made now."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.lru_cache(maxsize=64)
def warn(message: str) -> None:
    """One line on stderr, unless the program's logging says otherwise; the same line once."""
    logging.getLogger("flashsvd.tuning").warning(message)


def _entry(row: Any) -> Entry | None:
    """None for what is no entry."""
    try:
        entry = Entry(**row)
    except TypeError:
        return None
    words = (entry.kernel, entry.key, entry.date)
    times = (entry.default_us, entry.chosen_us)
    if not all(isinstance(word, str) for word in words) or not isinstance(entry.tiles, dict):
        return None
    if not all(type(us) in (int, float) and 0 < us < math.inf for us in times):
        return None
    return entry
