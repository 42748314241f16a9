"""Make the bundled classifier `stdlib-bert` from the Python standard library.

Runs alone, too: `python -m flashsvd.demo.train --out DIR [--stdlib DIR] [--device cuda]`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from flashsvd.demo.checkpoint import move_into_place, new_model, right_answers, save, write_pieces
from flashsvd.demo.learn import Progress, Recipe, classify, pretrain
from flashsvd.demo.pieces import DUPLICATE_RULE, Piece, cut_pieces, drop_near_duplicates, stratify
from flashsvd.demo.tokenizer import encode_lines, train_tokenizer
from flashsvd.demo.windows import build_store
from flashsvd.errors import DeviceError, FlashSVDError, InputError
from flashsvd.measure.intervals import wilson_interval

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
    place = _device(device)
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

    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
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
            device=_device_name(place),
            torch=torch.__version__,
            transformers=transformers.__version__,
            seconds=round(time.perf_counter() - started, 1),
            train_files=len(split.train),
            eval_files=len(split.evaluation),
            unlabelled_files=len(split.unlabelled),
            train_tokens=len(store.tokens),
            split_sha256=split.digest(),
            near_duplicates_removed=removed,
            duplicate_rule=DUPLICATE_RULE,
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
        move_into_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report_progress("checking", 1, 1)
    return report


def _check(recipe: Recipe, out: Path) -> None:
    if recipe.steps < 1 or recipe.mlm_steps < 0:
        raise InputError(
            f"expected at least 1 step, got {recipe.steps} (language model: {recipe.mlm_steps}); "
            "pass a positive number of steps"
        )
    if out.exists() and not (out / "card.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"expected a new folder or an earlier checkpoint, found something else at {out}; "
            "choose another folder"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"expected the device auto, cpu or cuda, got {name!r}; choose one of the three")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("expected a CUDA device, found none; pass --device cpu")
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _pieces(
    split: corpus.Split, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[list[Piece], list[Piece], int]:
    def count_tokens(lines: list[str]) -> list[int]:
        return [len(ids) for ids in encode_lines(tokenizer, lines)]

    def cut(files: Sequence[corpus.SourceFile]) -> list[Piece]:
        limits = {"low": recipe.shortest, "high": recipe.longest, "seed": seed}
        return [piece for file in files for piece in cut_pieces(file, count_tokens, **limits)]

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
    flags = " ".join(f"--{key.replace('_', '-')} {getattr(recipe, key)}" for key in FLAGS)
    return f"python -m flashsvd.demo.train --out {NAME} --seed {seed} {flags}"


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
    """The command line for machines that have torch and transformers and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m flashsvd.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    for key in FLAGS:
        default = getattr(DEFAULT_RECIPE, key)
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args(arguments)

    def show(stage: str, done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", file=sys.stderr, flush=True)

    recipe = replace(DEFAULT_RECIPE, **{key: getattr(given, key) for key in FLAGS})
    try:
        report = train_stdlib_bert(
            given.out, stdlib=given.stdlib, seed=given.seed, device=given.device, progress=show, recipe=recipe
        )
    except FlashSVDError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(report), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
