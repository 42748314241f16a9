"""Make the bundled language model `stdlib-llama` from the Python standard library.

Runs alone, too: `python -m flashsvd.demo.train_language --out DIR [--stdlib DIR] [--device cuda]`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flashsvd.demo import corpus
from flashsvd.demo.checkpoint import (
    check_free,
    new_language_model,
    reopened,
    save,
    write_passages,
    written_whole,
)
from flashsvd.demo.command import run_alone, written_flags
from flashsvd.demo.descent import Progress
from flashsvd.demo.language import LanguageRecipe, learn_next_token, token_run
from flashsvd.demo.language_card import Held, LanguageReport, render_language_card
from flashsvd.demo.pieces import Piece, cut_pieces, drop_near_duplicates, duplicate_rule, stratify
from flashsvd.demo.tokenizer import encode_lines, train_causal_tokenizer
from flashsvd.errors import InputError
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.perplexity import perplexity
from flashsvd.models.load import pick_device
from flashsvd.tasks.base import Examples
from flashsvd.tasks.encoding import token_stream

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

NAME = "stdlib-llama"
DEFAULT_RECIPE = LanguageRecipe()
FLAGS = ("steps", "batch", "lr", "weight_decay", "dropout", "bos_share")
PROMPT = '''def parse_header(line):
    """Parse a header line into its name and value."""
'''
SAMPLE_TOKENS = 200
TEMPERATURE = 0.7


def train_stdlib_llama(
    out: Path,
    *,
    stdlib: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    recipe: LanguageRecipe = DEFAULT_RECIPE,
) -> LanguageReport:
    """Train the checkpoint and write it to `out`, which appears only when everything is in it.

    `steps` replaces those of `recipe`. `progress(stage, done, total)` is called now and then. Raises InputError on
    values out of range or a folder it would be wrong to replace, DeviceError when the device is not there,
    FlashSVDError when the loss is not finite.
    """
    import transformers

    recipe = recipe if steps is None else replace(recipe, steps=steps)
    if recipe.steps < 1:
        raise InputError(f"expected at least 1 step, got {recipe.steps}; pass a positive number of steps")
    check_free(out)
    place = pick_device(device)
    tell: Progress = progress or (lambda stage, done, total: None)
    library = stdlib or corpus.standard_library()
    started = time.perf_counter()
    torch.manual_seed(seed)

    tell("reading", 0, 1)
    split = corpus.split_by_file(corpus.read_sources(library), seed=seed, eval_share=recipe.eval_share)
    tokenizer = train_causal_tokenizer(
        (file.text for file in split.training_half), vocab_size=recipe.vocab, max_length=recipe.context
    )
    evaluation, calibration, removed = _passages(split, tokenizer, recipe, seed)
    run = token_run(split.training_half, tokenizer, place)
    tell("reading", 1, 1)

    model = new_language_model(tokenizer, recipe)
    nn.Module.to(model, place)
    learn_next_token(model, run, recipe, seed=seed, progress=tell)

    with written_whole(out) as partial:
        save(model, tokenizer, partial)
        write_passages(evaluation, partial / "evaluation.parquet")
        write_passages(calibration, partial / "calibration.parquet")
        tell("checking", 0, 1)
        saved, reader = reopened(partial, place)
        report = LanguageReport(
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
            train_files=len(split.training_half),
            eval_files=len(split.evaluation),
            train_tokens=len(run),
            epochs=recipe.steps * recipe.batch * recipe.context / len(run),
            split_sha256=split.digest(),
            near_duplicates_removed=removed,
            duplicate_rule=duplicate_rule(recipe.duplicate_share),
            held_out=_held(saved, reader, evaluation, recipe, seed),
            training=_held(saved, reader, calibration, recipe, seed),
            unigram_perplexity=_unigram_perplexity(run, _stream(evaluation, reader), recipe.vocab),
            prompt=PROMPT,
            sample=_sample(saved, reader, seed),
            sample_settings=f"Sampled on a CPU at temperature {TEMPERATURE}, seed {seed}",
            command=_command(recipe, seed),
        )
        (partial / "card.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        (partial / "README.md").write_text(render_language_card(report))
    tell("checking", 1, 1)
    return report


def _passages(
    split: corpus.Split, tokenizer: PreTrainedTokenizerFast, recipe: LanguageRecipe, seed: int
) -> tuple[list[Piece], list[Piece], int]:
    def count_tokens(lines: list[str]) -> list[int]:
        return [len(ids) for ids in encode_lines(tokenizer, lines)]

    def cut(files: Sequence[corpus.SourceFile]) -> list[Piece]:
        return [
            piece
            for file in files
            for piece in cut_pieces(
                file, count_tokens, low=recipe.shortest, high=recipe.longest, seed=seed, with_headers=False
            )
        ]

    def drawn(pieces: list[Piece], per_family: int) -> list[Piece]:
        chosen = stratify(pieces, split.families, per_family, seed=seed)
        # The first windows of the passages, all that a short run looks at, are then of every family.
        return sorted(chosen, key=lambda piece: corpus.stable_hash(seed, piece.text))

    new, removed = drop_near_duplicates(
        cut(split.evaluation), split.training_half, threshold=recipe.duplicate_share
    )
    evaluation = drawn(new, recipe.eval_per_family)
    calibration = drawn(cut(split.train), max(1, recipe.calibration_pieces // len(split.families)))
    if not evaluation or not calibration:
        raise InputError(
            f"expected files of {recipe.shortest} tokens or more in both halves, found too few; "
            "pass a whole standard library"
        )
    return evaluation, calibration, removed


def _stream(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return token_stream(Examples(tuple(piece.text for piece in pieces), None, None), tokenizer)


def _held(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[Piece],
    recipe: LanguageRecipe,
    seed: int,
) -> Held:
    tokens = _stream(pieces, tokenizer)
    found = perplexity(model, tokens, window=recipe.context, batch=32, seed=seed)
    # <s>, the one token that is not scored, is no text.
    n_bytes = len("\n\n".join(piece.text for piece in pieces).encode())
    per_byte = found.tokens / n_bytes
    bits = [math.log2(value) * per_byte for value in (found.value, found.low, found.high)]
    return Held(len(pieces), found.tokens, n_bytes, found.value, found.low, found.high, *bits)


def _unigram_perplexity(run: Tensor, tokens: Tensor, vocabulary: int) -> float:
    """Every token counts once more than it occurs, so that none is impossible."""
    counts = torch.bincount(run.cpu(), minlength=vocabulary).double() + 1
    return float(torch.exp(-(counts / counts.sum()).log()[tokens[1:]].mean()))


def _sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int) -> str:
    """What the model writes after the prompt, as far as its last whole line."""
    # GPUs draw other numbers.
    nn.Module.to(model, "cpu")
    prompt = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    torch.manual_seed(seed)
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
    )
    text = str(tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True))
    return text.rpartition("\n")[0]


def _command(recipe: LanguageRecipe, seed: int) -> str:
    if recipe == replace(DEFAULT_RECIPE, steps=recipe.steps):
        return f"python -m flashsvd train-demo {NAME} --seed {seed} --steps {recipe.steps}"
    return f"python -m flashsvd.demo.train_language --out {NAME} --seed {seed} {written_flags(recipe, FLAGS)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; the exit status."""
    return run_alone(
        "python -m flashsvd.demo.train_language",
        __doc__,
        train_stdlib_llama,
        DEFAULT_RECIPE,
        FLAGS,
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
