"""The validation split of any task as a held-out set, for what scores a model many times."""

from __future__ import annotations

from flashsvd.data import Samples, window_of
from flashsvd.errors import InputError, ModelError
from flashsvd.evaluation.held_out import DEFAULT_PIECES, DEFAULT_WINDOWS, HeldOut, Passages, Pieces
from flashsvd.measure.perplexity import check_causal
from flashsvd.models.load import LoadedModel
from flashsvd.tasks.base import sample
from flashsvd.tasks.encoding import LONGEST, encode, token_stream, tokenizer_of
from flashsvd.tasks.labels import is_classifier
from flashsvd.tasks.registry import task_named


def held_out_on(loaded: LoadedModel, task: str, samples: int | None, seed: int) -> HeldOut:
    """At most `samples` examples of a task by name (`flashsvd.tasks`), drawn with `seed`, or as many windows of plain
    text; 512 and 64 if None. Classes are scored by accuracy, plain text by perplexity.

    Raises:
        InputError: no such task, one that cannot be read, or one that does not fit the model's head.
        ModelError: the model has random weights.
    """
    if not loaded.trained:
        raise ModelError(f"{loaded.name} has random weights: accuracy does not apply")
    found = task_named(task, loaded)
    tokenizer = tokenizer_of(loaded)
    if found.kind == "language":
        check_causal(loaded.model)
        window = window_of(loaded)
        tokens = token_stream(found.load("validation"), tokenizer)[
            : (samples or DEFAULT_WINDOWS) * window + 1
        ]
        if len(tokens) < 2:
            raise InputError(f"{task} holds fewer than 2 tokens of held-out text: expected some to predict")
        return Passages(loaded.model, tokens, window, seed)
    if found.kind == "regression":
        raise InputError(f"{task} asks for numbers: a curve of accuracy needs classes or plain text")
    if not is_classifier(loaded):
        raise InputError(
            f"{task} wants labels of whole texts, which a {type(loaded.model).__name__} does not give; "
            "score it on plain text, such as wikitext-2 or text:PATH"
        )
    examples = sample(found.load("validation"), samples or DEFAULT_PIECES, seed)
    if examples.second is not None:
        raise InputError(f"{task} has pairs of texts: a curve scores single texts")
    encoded = encode(examples, tokenizer, min(loaded.shape.max_positions, LONGEST))
    labels = tuple(map(int, encoded.labels or ()))
    return Pieces(loaded.model, Samples(encoded.ids, labels, tokenizer.pad_token_id or 0), seed)
