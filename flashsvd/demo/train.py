"""Make the bundled classifier `stdlib-bert` from the Python standard library.

Runs alone, too: `python -m flashsvd.demo.train --out DIR [--stdlib DIR] [--device cuda]`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from flashsvd.demo import corpus
from flashsvd.demo.card import DemoReport, FamilyCount, render_card
from flashsvd.demo.checkpoint import check_free, new_model, right_answers, save, write_pieces, written_whole
from flashsvd.demo.command import run_alone, written_flags
from flashsvd.demo.descent import Progress
from flashsvd.demo.learn import Recipe, classify, pretrain
from flashsvd.demo.pieces import Piece, cut_pieces, drop_near_duplicates, duplicate_rule, stratify
from flashsvd.demo.tokenizer import encode_lines, train_tokenizer
from flashsvd.demo.windows import build_store
from flashsvd.errors import InputError
from flashsvd.measure.intervals import wilson_interval
from flashsvd.measure.machine import describe_machine
from flashsvd.models.load import pick_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "stdlib-bert"
DEFAULT_RECIPE = Recipe()


def train_stdlib_bert(
    out: Path,
    *,
    stdlib: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    recipe: Recipe = DEFAULT_RECIPE,
) -> DemoReport:
    """Train the checkpoint and write it to `out`, which appears only when everything is in it.

    `steps` shortens or lengthens both stages of `recipe` in proportion. `progress(stage, done, total)` is
    called now and then. Raises InputError on values out of range or a folder it would be wrong to replace,
    DeviceError when the device is not there, FlashSVDError when the loss is not finite.
    """
    import transformers

    if steps is not None:
        recipe = replace(recipe, steps=steps, mlm_steps=round(recipe.mlm_steps * steps / recipe.steps))
    _check(recipe, out)
    place = pick_device(device)
    report_progress: Progress = progress or (lambda stage, done, total: None)
    library = stdlib or corpus.standard_library()
    started = time.perf_counter()
    torch.manual_seed(seed)

    report_progress("reading", 0, 1)
    split = corpus.split_by_file(corpus.read_sources(library), seed=seed)
    tokenizer = train_tokenizer(
        (file.text for file in split.training_half), vocab_size=recipe.vocab, max_length=recipe.max_positions
    )
    evaluation, calibration, removed = _pieces(split, tokenizer, recipe, seed)
    store = build_store(split, tokenizer, place, low=recipe.shortest)
    report_progress("reading", 1, 1)

    model = new_model(split.families, tokenizer, recipe)
    nn.Module.to(model, place)
    pretrain(model, store, recipe, seed=seed, progress=report_progress)
    classify(model, store, recipe, seed=seed, progress=report_progress)

    with written_whole(out) as partial:
        save(model, tokenizer, partial)
        write_pieces(evaluation, split.families, partial / "evaluation.parquet")
        write_pieces(calibration, split.families, partial / "calibration.parquet")
        report_progress("checking", 0, 1)
        right = right_answers(partial, evaluation, split.families, place)
        train_right = right_answers(partial, calibration, split.families, place)
        counts = _count_families(split, evaluation, calibration, right)
        low, high = wilson_interval(sum(right), len(right))
        report = DemoReport(
            name=NAME,
            python=corpus.python_version(library),
            seed=seed,
            recipe=asdict(recipe),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            size_bytes=sum(file.stat().st_size for file in partial.iterdir()),
            device=describe_machine(place).accelerator or "a CPU",
            torch=torch.__version__,
            transformers=transformers.__version__,
            seconds=round(time.perf_counter() - started, 1),
            train_files=len(split.train),
            eval_files=len(split.evaluation),
            unlabelled_files=len(split.unlabelled),
            train_tokens=len(store.tokens),
            split_sha256=split.digest(),
            near_duplicates_removed=removed,
            duplicate_rule=duplicate_rule(),
            eval_pieces=len(right),
            accuracy=sum(right) / len(right),
            accuracy_low=low,
            accuracy_high=high,
            train_accuracy=sum(train_right) / len(train_right),
            majority_accuracy=max(row.eval_pieces for row in counts) / len(right),
            families=counts,
            command=_command(recipe, seed),
        )
        (partial / "card.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        (partial / "README.md").write_text(render_card(report))
    report_progress("checking", 1, 1)
    return report


def _check(recipe: Recipe, out: Path) -> None:
    if recipe.steps < 1 or recipe.mlm_steps < 0:
        raise InputError(
            f"expected at least 1 step, got {recipe.steps} (language model: {recipe.mlm_steps}); "
            "pass a positive number of steps"
        )
    check_free(out)


def _pieces(
    split: corpus.Split, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[list[Piece], list[Piece], int]:
    def count_tokens(lines: list[str]) -> list[int]:
        return [len(ids) for ids in encode_lines(tokenizer, lines)]

    def cut(files: Sequence[corpus.SourceFile]) -> list[Piece]:
        return [
            piece
            for file in files
            for piece in cut_pieces(file, count_tokens, low=recipe.shortest, high=recipe.longest, seed=seed)
        ]

    new, removed = drop_near_duplicates(cut(split.evaluation), split.training_half)
    evaluation = stratify(new, split.families, recipe.eval_per_family, seed=seed)
    per_family = max(1, recipe.calibration_pieces // len(split.families))
    calibration = stratify(cut(split.train), split.families, per_family, seed=seed)
    if not evaluation or not calibration:
        raise InputError(
            f"expected files of {recipe.shortest} tokens or more in both halves, found too few; "
            "pass a whole standard library"
        )
    return evaluation, calibration, removed


def _count_families(
    split: corpus.Split,
    evaluation: Sequence[Piece],
    calibration: Sequence[Piece],
    right: list[bool],
) -> tuple[FamilyCount, ...]:
    train_files = Counter(file.family for file in split.train)
    eval_files = Counter(file.family for file in split.evaluation)
    calibration_pieces = Counter(piece.family for piece in calibration)
    eval_pieces = Counter(piece.family for piece in evaluation)
    correct = Counter(piece.family for piece, hit in zip(evaluation, right, strict=True) if hit)
    return tuple(
        FamilyCount(
            family=name,
            train_files=train_files[name],
            eval_files=eval_files[name],
            calibration_pieces=calibration_pieces[name],
            eval_pieces=eval_pieces[name],
            eval_correct=correct[name],
        )
        for name in split.families
    )


def _command(recipe: Recipe, seed: int) -> str:
    scaled = replace(
        DEFAULT_RECIPE,
        steps=recipe.steps,
        mlm_steps=round(DEFAULT_RECIPE.mlm_steps * recipe.steps / DEFAULT_RECIPE.steps),
    )
    if recipe == scaled:
        return f"python -m flashsvd train-demo {NAME} --seed {seed} --steps {recipe.steps}"
    return f"python -m flashsvd.demo.train --out {NAME} --seed {seed} {written_flags(recipe, FLAGS)}"


FLAGS = (
    "steps",
    "mlm_steps",
    "batch",
    "lr",
    "mlm_lr",
    "weight_decay",
    "dropout",
    "token_dropout",
    "label_smoothing",
    "shortest",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; the exit status."""
    return run_alone(
        "python -m flashsvd.demo.train", __doc__, train_stdlib_bert, DEFAULT_RECIPE, FLAGS, arguments
    )


if __name__ == "__main__":
    sys.exit(main())
