"""Labelled and plain text: bundled sets, GLUE, WikiText-2 and local files, by one name each."""

from flashsvd.tasks.base import Examples, Split, Task, sample
from flashsvd.tasks.encoding import Encoded, batches, encode, token_stream
from flashsvd.tasks.registry import task_named

__all__ = [
    "Encoded",
    "Examples",
    "Split",
    "Task",
    "batches",
    "encode",
    "sample",
    "task_named",
    "token_stream",
]
