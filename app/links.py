"""States that are too long for an address, kept on this machine under the hash of what they say."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flashsvd.errors import InputError
from flashsvd.paths import home

LONGEST_ADDRESS = 900
"""Characters of a query; chats and slides break longer addresses."""
_KEY = "s"
_HASH = re.compile(r"[0-9a-f]{20}")
_LARGEST_BYTES = 2**20


def keep(data: Any) -> str:
    """Writes plain data under the hash of its JSON; returns the hash. Equal data is written once.

    Raises:
        InputError: above 1 MiB, or the folder cannot be written.
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > _LARGEST_BYTES:
        raise InputError(f"a link holds up to {_LARGEST_BYTES} bytes, got {len(text)}: make the plan simpler")
    digest = hashlib.sha256(text).hexdigest()[:20]
    path = _path(digest)
    if path.exists():
        return digest
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        raise InputError(
            f"the link cannot be kept ({error}): set FLASHSVD_HOME to a folder that can be written"
        ) from None
    return digest


def find(digest: str) -> Any:
    """What was kept under a hash.

    Raises:
        InputError: no hash, nothing is kept under it here, or the file was changed since.
    """
    if not _HASH.fullmatch(digest):
        raise InputError(f"a short link is 20 digits from 0 to f, got {digest[:40]!r}")
    try:
        text = _path(digest).read_bytes()
    except OSError:
        raise InputError(
            f"nothing is kept here under the short link {digest}: it was made on another machine, ask there for a file"
        ) from None
    if hashlib.sha256(text).hexdigest()[:20] != digest:
        raise InputError(f"what is kept under the short link {digest} was changed: make the link again")
    return json.loads(text)


def shortened(query: Mapping[str, str]) -> dict[str, str]:
    """A query as it stands in the address: itself, or the hash of it where it is long."""
    if len(urlencode(query)) <= LONGEST_ADDRESS:
        return dict(query)
    return {_KEY: keep(dict(query))}


def expanded(query: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `shortened`. Raises InputError where a hash says nothing here."""
    if _KEY not in query:
        return dict(query)
    data = find(query[_KEY])
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InputError("this short link holds something else than a page's state")
    return {str(name): value for name, value in data.items()}


def _path(digest: str) -> Path:
    return home() / "links" / f"{digest}.json"
