"""Public sets through `datasets`: only formats that hold data and no code are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashsvd.errors import InputError
from flashsvd.tasks.tables import Columns


def datasets_module(what: str) -> Any:
    """The package `datasets`. Raises InputError where it is not installed; `what` needs it."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{what} needs the package datasets: pip install 'flashsvd[glue]'") from None
    return datasets


def fetch(task: str, repository: str, configuration: str, split: str) -> Columns:
    """One split of a set of the hub, from this machine's cache where it is there.

    Raises:
        InputError: not here and the hub cannot be reached, or `datasets` is not installed.
    """
    datasets = datasets_module(task)
    lacking = f"{task} is not on this machine and the hub cannot be reached"
    cached = Path(datasets.config.HF_DATASETS_CACHE) / repository.replace("/", "___") / configuration
    if not cached.is_dir() and not _reachable(repository):
        raise InputError(lacking)
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        # These repositories hold Parquet and no script; a script would be refused, not run.
        found = datasets.load_dataset(repository, configuration, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{lacking}, or it cannot be read ({first[:160]})") from None
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    return columns_of(found)


def _reachable(repository: str) -> bool:
    """Asked first: `datasets` itself tries for half a minute before it gives up."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(repository, timeout=5)
    except Exception:
        # The HTTP client, and so the kind of its errors, differs between versions of huggingface_hub.
        return False
    return True


def columns_of(dataset: Any) -> Columns:
    """The columns of a `datasets.Dataset`."""
    return {name: list(dataset[name]) for name in dataset.column_names}


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
    """The names of a column's classes where the set gives them (a ClassLabel)."""
    names = getattr(features.get(column), "names", None)
    return None if names is None else tuple(names)
