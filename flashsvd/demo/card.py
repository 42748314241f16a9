"""What a run reports, and the model card written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyCount:
    """One class: its files in each half, its evaluation pieces and how many of them are told right."""

    family: str
    train_files: int
    eval_files: int
    calibration_pieces: int
    eval_pieces: int
    eval_correct: int


@dataclass(frozen=True)
class DemoReport:
    """Everything the model card says, in machine form. Accuracies are shares, times are in seconds."""

    name: str
    python: str
    seed: int
    recipe: Mapping[str, int | float]
    parameters: int
    size_bytes: int
    device: str
    torch: str
    transformers: str
    seconds: float
    train_files: int
    eval_files: int
    unlabelled_files: int
    train_tokens: int
    split_sha256: str
    near_duplicates_removed: int
    duplicate_rule: str
    eval_pieces: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    train_accuracy: float
    majority_accuracy: float
    families: tuple[FamilyCount, ...]
    command: str


def render_card(report: DemoReport) -> str:
    """The model card in Markdown."""
    recipe = report.recipe
    rows = "\n".join(
        f"| {row.family} | {row.train_files} | {row.eval_files} | {row.calibration_pieces} "
        f"| {row.eval_pieces} | {row.eval_correct / max(row.eval_pieces, 1):.1%} |"
        for row in report.families
    )
    return f"""---
license: psf-2.0
library_name: transformers
pipeline_tag: text-classification
---
# {report.name}

A small BERT that says which family of the Python standard library wrote a piece of code, out of
{len(report.families)}. It exists to be compressed: accuracy falls step by step as ranks shrink.

**Dense accuracy {report.accuracy:.1%}** (95 % Wilson interval {report.accuracy_low:.1%} to
{report.accuracy_high:.1%}, n = {report.eval_pieces}, held-out files, measured on the files in this folder
after rounding to float16). Always answering the largest class scores {report.majority_accuracy:.1%}. On the
calibration pieces, which are from training files, it scores {report.train_accuracy:.1%}.

## Data
- Source: the standard library of Python {report.python}, `*.py`, under the PSF License 2.0. The pieces in
  `evaluation.parquet` and `calibration.parquet` are excerpts of it and carry the same licence.
- Split by file, within each topic of a family, by a seeded hash of the path: {report.train_files} training
  files, {report.eval_files} evaluation files, no file in both. The largest file of each topic is always in
  training. {report.unlabelled_files} files of no family serve the language-model stage only.
- A piece is consecutive lines of one file below the `class` and `def` lines that enclose them,
  {recipe["shortest"]} to {recipe["longest"]} tokens. Import lines are kept.
- Near-duplicates: {report.duplicate_rule} {report.near_duplicates_removed} pieces were removed.
- The tokenizer was trained on the training half only ({report.train_tokens:,} tokens).
- SHA-256 of the split (paths, halves, contents): `{report.split_sha256}`

The table of families was drawn up while looking at the split of seed 0; other seeds are the cleaner test.

| family | train files | eval files | calibration pieces | eval pieces | accuracy |
|---|---|---|---|---|---|
{rows}

## Model
`BertForSequenceClassification`, {recipe["layers"]} layers, hidden {recipe["hidden"]}, {recipe["heads"]} heads
of {int(recipe["hidden"]) // int(recipe["heads"])}, feed-forward {4 * recipe["hidden"]}, byte-level BPE of
{recipe["vocab"]}, {report.parameters:,} parameters. Weights are stored as float16 and load as float32.

## Training
Masked language model for {recipe["mlm_steps"]} steps, then families for {recipe["steps"]} steps, batch
{recipe["batch"]}, AdamW with warm-up and cosine decay, seed {report.seed}. Took {report.seconds:.0f} s on
{report.device} with torch {report.torch}, transformers {report.transformers}.

```
{report.command}
```

## What it does not do
It knows one version of one library. It says nothing useful about other code, and some pieces (a licence
header, a bare table) belong to no family in particular.
"""
