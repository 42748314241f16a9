"""The name of a task -> the task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashsvd.errors import InputError
from flashsvd.tasks.base import Task
from flashsvd.tasks.glue import glue_task
from flashsvd.tasks.labels import head_of, is_classifier
from flashsvd.tasks.local import local_task, parse_path
from flashsvd.tasks.tables import SUFFIXES
from flashsvd.tasks.wikitext import text_task, wikitext_task

if TYPE_CHECKING:
    from flashsvd.models.load import LoadedModel


def task_named(spec: str, loaded: LoadedModel | None = None, *, new_head: bool = False) -> Task:
    """A task by name: bundled, glue/NAME, wikitext-2, text:PATH, or a file or folder of examples.

    `path.csv:text=sentence,second=sentence2,label=gold` names the columns, which are guessed else. Labels come in
    the order of the classes of `loaded`, unless it is to get a new head. A model that gives no labels to sequences
    gets the texts of local files and of its own sets alone.

    Raises:
        InputError: no such task or file, or examples that cannot be read or do not fit the model's head.
        ModelError: the model's own sets cannot be read.
    """
    head = None if new_head else head_of(loaded)
    plain = loaded is not None and not new_head and not is_classifier(loaded)
    if spec == "bundled":
        from flashsvd.tasks.bundled import bundled_task

        if loaded is None:
            raise InputError("task 'bundled' is a model's own set: name the model")
        return bundled_task(loaded, head, plain=plain)
    if spec.startswith("glue/"):
        return glue_task(spec.removeprefix("glue/"), head)
    if spec == "wikitext-2":
        return wikitext_task()
    if spec.startswith("text:"):
        return text_task(spec, Path(spec.removeprefix("text:")))
    path, _ = parse_path(spec)
    if path.exists() or path.suffix in SUFFIXES:
        return local_task(spec, head, plain=plain)
    raise InputError(
        f"unknown task {spec!r}: expected bundled, glue/NAME, wikitext-2, text:PATH, or a file or folder of "
        f"examples ({', '.join(SUFFIXES)})"
    )
