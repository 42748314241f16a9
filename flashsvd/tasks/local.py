"""Local files and folders of examples, and folders that `datasets` saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashsvd.errors import InputError
from flashsvd.tasks.base import Split, Task
from flashsvd.tasks.columns import Choice, labelled_task, split_rows
from flashsvd.tasks.hub import class_names, columns_of, datasets_module
from flashsvd.tasks.labels import Head
from flashsvd.tasks.tables import SUFFIXES, Columns, read_table

_OPTIONS = re.compile(r":(\w+=[^,=]*(?:,\w+=[^,=]*)*)$")
_VALIDATION = ("validation", "validation_matched", "dev", "valid", "test")


def parse_path(spec: str) -> tuple[Path, Choice]:
    """`path.csv:text=sentence,second=sentence2,label=gold` -> the path and its columns.

    >>> parse_path("a.csv:label=gold")
    (PosixPath('a.csv'), Choice(text=None, second=None, label='gold'))

    Raises:
        InputError: another option.
    """
    found = _OPTIONS.search(spec)
    if found is None:
        return Path(spec), Choice()
    options = dict(part.split("=", 1) for part in found[1].split(","))
    unknown = sorted(set(options) - {"text", "second", "label"})
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r} in {spec!r}: expected text, second or label")
    return Path(spec[: found.start()]), Choice(**options)


def local_task(spec: str, head: Head | None, *, plain: bool) -> Task:
    """The examples of a file or folder.

    A file, and a set of one split, has a fifth of its texts held out. A folder holds train and validation files, or
    what `save_to_disk` of `datasets` wrote.

    Raises:
        InputError: missing, empty, or not a table of examples.
    """
    path, choice = parse_path(spec)
    splits: Mapping[Split, Columns]
    names: tuple[str, ...] | None = None
    if not path.is_dir():
        splits = split_rows(str(path), read_table(path), choice)
    elif (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        splits, names = _saved(path, choice)
    else:
        splits = {"train": _file(path, ("train",)), "validation": _file(path, _VALIDATION)}
    return labelled_task(str(path), path.name, str(path), splits, choice, head=head, plain=plain, names=names)


def _file(folder: Path, stems: tuple[str, ...]) -> Columns:
    for stem in stems:
        found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise InputError(f"{folder} has both {found[0].name} and {found[1].name}: keep one")
        if found:
            return read_table(found[0])
    raise InputError(
        f"{folder} has no {stems[0]} file: expected {stems[0]} and one of {', '.join(SUFFIXES)} as its name"
    )


def _saved(path: Path, choice: Choice) -> tuple[Mapping[Split, Columns], tuple[str, ...] | None]:
    datasets = datasets_module(str(path))
    try:
        saved: Any = datasets.load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path} is empty or not a set that datasets saved ({first[:160]})") from None
    if not isinstance(saved, dict):
        saved = {"train": saved}
    features = next(iter(saved.values())).features
    names = next(
        (
            found
            for column in (choice.label, "label", "labels", "gold")
            if column and (found := class_names(features, column))
        ),
        None,
    )
    held_out = next((name for name in _VALIDATION if name in saved), None)
    if "train" not in saved:
        raise InputError(f"{path} has no split train: it has {', '.join(saved)}")
    train = _filled(path, "train", columns_of(saved["train"]))
    if held_out is None:
        return split_rows(str(path), train, choice), names
    return {"train": train, "validation": _filled(path, held_out, columns_of(saved[held_out]))}, names


def _filled(path: Path, split: str, columns: Columns) -> Columns:
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"{path}: split {split} is empty: expected at least one row")
    return columns
