"""The text the demo checkpoints learn from: the standard library's own source, labelled and split by file."""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

from flashsvd.demo.families import FAMILIES
from flashsvd.errors import InputError

# Generated or borrowed text: it would teach tables and tokens that no family wrote.
EXCLUDED = (
    "site-packages/*", "dist-packages/*", "*__pycache__/*", "config-*", "_sysconfigdata*", "pydoc_data/*",
    "lib2to3/tests/data/*", "test/encoded_modules/*", "test/tokenizedata/*", "html/entities.py",
    "html/__init__.py",
)  # fmt: skip
MIN_FILE_CHARS = 200
MIN_FILES = 8


@dataclass(frozen=True)
class SourceFile:
    """One file: its path below the standard library, its text, and its family and topic (None: no class)."""

    path: str
    text: str
    family: str | None
    topic: str | None = None

    @property
    def lines(self) -> list[str]:
        """Lines with their ends, broken at line feeds only: `splitlines` also breaks at form feeds."""
        return list(StringIO(self.text, newline="\n"))


@dataclass(frozen=True)
class Split:
    """The files of each half. `unlabelled` files belong to the training half."""

    families: tuple[str, ...]
    train: tuple[SourceFile, ...]
    evaluation: tuple[SourceFile, ...]
    unlabelled: tuple[SourceFile, ...]

    @property
    def training_half(self) -> tuple[SourceFile, ...]:
        return tuple(sorted(self.train + self.unlabelled, key=lambda file: file.path))

    def digest(self) -> str:
        """SHA-256 over every path, half and content: equal digests mean the same data, split the same way."""
        total = hashlib.sha256()
        for half, files in (("train", self.training_half), ("evaluation", self.evaluation)):
            for file in files:
                content = hashlib.sha256(file.text.encode()).hexdigest()
                total.update(f"{half}\t{file.path}\t{file.family}\t{content}\n".encode())
        return total.hexdigest()


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_version(stdlib: Path) -> str:
    """The version a copy belongs to: exact for the running Python's own, else what the folder's name says."""
    if stdlib.resolve() == standard_library().resolve():
        return platform.python_version()
    named = re.search(r"(\d+\.\d+(?:\.\d+)?)$", stdlib.name)
    return named.group(1) if named else "unknown"


def family_of(path: str, table: Mapping[str, Sequence[str]] = FAMILIES) -> tuple[str | None, str | None]:
    """The family and the topic of a path below the standard library, or two Nones.

    >>> family_of("test/test_asyncio/test_tasks.py")
    ('asyncio', 'asyncio')
    >>> family_of("_pydecimal.py"), family_of("antigravity.py")
    (('numbers', 'decimal _pydecimal'), (None, None))
    """
    for family, topics in table.items():
        for topic in topics:
            for entry in topic.split():
                patterns = (entry,) if set(entry) & set("/*.") else _patterns_of_module(entry)
                if any(fnmatchcase(path, pattern) for pattern in patterns):
                    return family, topic
    return None, None


def _patterns_of_module(name: str) -> tuple[str, ...]:
    return f"{name}.py", f"{name}/*", f"test/test_{name}.py", f"test/test_{name}/*"


def read_sources(stdlib: Path) -> tuple[SourceFile, ...]:
    """Every readable UTF-8 Python file below `stdlib`, sorted by path.

    Raises InputError when the folder holds no Python source.
    """
    files = []
    for path in stdlib.rglob("*.py"):
        relative = path.relative_to(stdlib).as_posix()
        if any(fnmatchcase(relative, pattern) for pattern in EXCLUDED):
            continue
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) >= MIN_FILE_CHARS:
            files.append(SourceFile(relative, text, *family_of(relative)))
    if not files:
        raise InputError(
            f"expected the folder of a Python standard library, found no Python source in {stdlib}; "
            "pass the folder that holds argparse.py"
        )
    return tuple(sorted(files, key=lambda file: file.path))


def split_by_file(
    files: Iterable[SourceFile], *, seed: int = 0, eval_share: float = 0.3, min_files: int = MIN_FILES
) -> Split:
    """Deal the files of each topic into two halves; no file is in both.

    Files are taken in the order of a seeded hash of their path until `eval_share` of the topic's text is for
    evaluation. The largest file of a topic always stays in training, and with it any topic of a single file:
    a module that training never saw would ask for general knowledge, not for what a small model can learn.
    Families with fewer than `min_files` files lose their class.
    """
    by_family: dict[str, list[SourceFile]] = defaultdict(list)
    unlabelled = []
    for file in files:
        if file.family is None:
            unlabelled.append(file)
        else:
            by_family[file.family].append(file)

    train: list[SourceFile] = []
    evaluation: list[SourceFile] = []
    kept = []
    for family, members in sorted(by_family.items()):
        if len(members) < min_files:
            unlabelled += [SourceFile(file.path, file.text, None) for file in members]
            continue
        kept.append(family)
        for topic in sorted({file.topic or "" for file in members}):
            group = [file for file in members if (file.topic or "") == topic]
            largest = max(group, key=lambda file: (len(file.text), file.path))
            wanted = eval_share * sum(len(file.text) for file in group)
            held = 0
            for file in sorted(group, key=lambda file: stable_hash(seed, file.path)):
                if file is not largest and held < wanted:
                    held += len(file.text)
                    evaluation.append(file)
                else:
                    train.append(file)
    if len(kept) < 2:
        raise InputError(
            f"expected at least 2 families of {min_files} files or more, found {len(kept)}; "
            "pass a standard library that includes its test folder"
        )

    def ordered(group: list[SourceFile]) -> tuple[SourceFile, ...]:
        return tuple(sorted(group, key=lambda file: file.path))

    return Split(tuple(kept), ordered(train), ordered(evaluation), ordered(unlabelled))


def stable_hash(seed: int, text: str) -> int:
    """An integer that is the same in every process: `hash()` of a string is not."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")
