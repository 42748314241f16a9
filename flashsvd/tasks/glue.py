"""GLUE (Wang et al., arXiv 1804.07461), each task with the metric that it is ranked by."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.errors import InputError
from flashsvd.tasks.base import Examples, MetricName, Split, Task
from flashsvd.tasks.hub import fetch
from flashsvd.tasks.labels import Head, check_regression, match_classes

REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns, metric, and classes in the order of its label numbers."""

    title: str
    text: str
    second: str | None
    metric: MetricName
    classes: tuple[str, ...]
    validation: str = "validation"


_ENTAILS = ("entailment", "not_entailment")

TASKS = {
    "sst2": GlueTask(
        "SST-2, sentiment of film reviews", "sentence", None, "accuracy", ("negative", "positive")
    ),
    "mrpc": GlueTask(
        "MRPC, paraphrases in news", "sentence1", "sentence2", "f1", ("not_equivalent", "equivalent")
    ),
    "cola": GlueTask(
        "CoLA, grammatical acceptability", "sentence", None, "matthews", ("unacceptable", "acceptable")
    ),
    "stsb": GlueTask("STS-B, similarity from 0 to 5", "sentence1", "sentence2", "pearson", ()),
    "qqp": GlueTask(
        "QQP, duplicate questions", "question1", "question2", "f1", ("not_duplicate", "duplicate")
    ),
    "mnli": GlueTask(
        "MNLI matched, entailment",
        "premise",
        "hypothesis",
        "accuracy",
        ("entailment", "neutral", "contradiction"),
        "validation_matched",
    ),
    "qnli": GlueTask("QNLI, does a sentence answer", "question", "sentence", "accuracy", _ENTAILS),
    "rte": GlueTask("RTE, entailment", "sentence1", "sentence2", "accuracy", _ENTAILS),
    "wnli": GlueTask("WNLI, pronouns", "sentence1", "sentence2", "accuracy", _ENTAILS[::-1]),
}


def glue_task(name: str, head: Head | None) -> Task:
    """A GLUE task by its short name, its labels in the order of the head's classes.

    Nothing is fetched before `load`.

    Raises:
        InputError: no such task, or a head for other classes.
    """
    if name not in TASKS:
        raise InputError(f"unknown task 'glue/{name}': expected glue/ and one of {', '.join(TASKS)}")
    about, spec = TASKS[name], f"glue/{name}"
    if about.classes:
        classes, position = match_classes(spec, about.classes, head)
    else:
        check_regression(spec, head)
        classes, position = (), ()

    def load(split: Split) -> Examples:
        columns = fetch(spec, REPOSITORY, name, "train" if split == "train" else about.validation)
        labels = columns["label"]
        return Examples(
            tuple(columns[about.text]),
            None if about.second is None else tuple(columns[about.second]),
            tuple(position[label] for label in labels) if position else tuple(map(float, labels)),
        )

    return Task(
        spec,
        about.title,
        f"hub: {REPOSITORY}",
        "classification" if classes else "regression",
        about.metric,
        classes,
        load,
        position[1] if len(position) == 2 else 1,
    )
