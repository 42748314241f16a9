"""WikiText-2 (Merity et al., arXiv 1609.07843) and plain text files, for language models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flashsvd.errors import InputError
from flashsvd.tasks.base import Examples, Split, Task
from flashsvd.tasks.columns import is_held_out
from flashsvd.tasks.hub import fetch

REPOSITORY = "Salesforce/wikitext"
_TITLE = re.compile(r" = [^=].* = \s*")
_PASSAGE_CHARACTERS = 2000


def wikitext_task() -> Task:
    """The raw text. An example is an article; "validation" is the published test split, which papers report."""

    def load(split: Split) -> Examples:
        rows = fetch("wikitext-2", REPOSITORY, "wikitext-2-raw-v1", "train" if split == "train" else "test")
        return Examples(articles(rows["text"]), None, None)

    return Task("wikitext-2", "WikiText-2", f"hub: {REPOSITORY}", "language", "perplexity", (), load)


def articles(rows: Sequence[str]) -> tuple[str, ...]:
    """Rows as published, one a line, gathered by article. Joined by blank lines they are the rows so joined.

    >>> articles([" = A = \\n", " one \\n", " = = Part = = \\n", " = B = \\n", " two \\n"])
    (' = A = \\n\\n\\n one \\n\\n\\n = = Part = = \\n', ' = B = \\n\\n\\n two \\n')
    """
    found: list[list[str]] = []
    for row in rows:
        if not found or _TITLE.fullmatch(row):
            found.append([])
        found[-1].append(row)
    return tuple("\n\n".join(part) for part in found)


def text_task(spec: str, path: Path) -> Task:
    """A plain text file, a fifth of its passages held out; or a folder with train.txt and validation.txt.

    Raises:
        InputError: missing, empty, not UTF-8, or too short to hold a passage out.
    """
    if path.is_dir():
        splits: dict[Split, tuple[str, ...]] = {
            "train": passages(_read(path / "train.txt")),
            "validation": passages(_read(path / "validation.txt")),
        }
    else:
        found = passages(_read(path))
        splits = {
            "train": tuple(text for text in found if not is_held_out(text)),
            "validation": tuple(text for text in found if is_held_out(text)),
        }
        if not all(splits.values()):
            raise InputError(
                f"{path} has {len(found)} passages, too few to hold some out: "
                "give a folder with train.txt and validation.txt"
            )
    return Task(
        spec,
        path.name,
        str(path),
        "language",
        "perplexity",
        (),
        lambda split: Examples(splits[split], None, None),
    )


def passages(text: str) -> tuple[str, ...]:
    """Runs of whole paragraphs of at least 2000 characters, the last one perhaps shorter."""
    found: list[str] = []
    current: list[str] = []
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", text)):
        current.append(paragraph.strip("\n"))
        if sum(map(len, current)) >= _PASSAGE_CHARACTERS:
            found.append("\n\n".join(current))
            current = []
    return (*found, "\n\n".join(current)) if current else tuple(found)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise InputError(f"{path} is not there or cannot be read: check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    if not text.strip():
        raise InputError(f"{path} is empty: expected text")
    return text
