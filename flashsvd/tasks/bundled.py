"""A model folder's own sets: calibration.parquet to train on, evaluation.parquet to score on."""

from __future__ import annotations

from flashsvd.errors import InputError, ModelError
from flashsvd.models.load import LoadedModel
from flashsvd.tasks.base import Task
from flashsvd.tasks.columns import Choice, labelled_task
from flashsvd.tasks.labels import Head
from flashsvd.tasks.tables import read_table


def has_bundled(loaded: LoadedModel) -> bool:
    """Whether a model's folder holds a calibration set and an evaluation set."""
    folder = loaded.source.folder
    return folder is not None and all(
        (folder / name).is_file() for name in ("calibration.parquet", "evaluation.parquet")
    )


def bundled_task(loaded: LoadedModel, head: Head | None, *, plain: bool) -> Task:
    """The sets of the model's own folder, columns text and label.

    Raises:
        InputError: the folder has none.
        ModelError: it has one that cannot be read.
    """
    folder = loaded.source.folder
    if folder is None or not has_bundled(loaded):
        raise InputError(
            f"{loaded.name} has no sets of its own (calibration.parquet and evaluation.parquet in its folder): "
            "name a task, such as glue/sst2, wikitext-2, text:PATH or a file of examples"
        )
    try:
        return labelled_task(
            "bundled",
            f"{loaded.name}, its own sets",
            str(folder),
            {
                "train": read_table(folder / "calibration.parquet"),
                "validation": read_table(folder / "evaluation.parquet"),
            },
            Choice("text", None, "label"),
            head=head,
            plain=plain,
        )
    except InputError as error:
        raise ModelError(f"{folder} does not hold the sets of its model: {error}") from None
