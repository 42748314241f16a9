"""What a run of the language model reports, and the model card written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """One half's score, on passages of it in windows side by side. Intervals are 95 %; bits are of a byte of UTF-8."""

    passages: int
    tokens: int
    bytes: int
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    bits_per_byte: float
    bits_per_byte_low: float
    bits_per_byte_high: float


@dataclass(frozen=True)
class LanguageReport:
    """Everything the model card says, in machine form. Times are in seconds.

    unigram_perplexity: of always guessing each token as often as it occurs in the training half.
    """

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
    train_tokens: int
    epochs: float
    split_sha256: str
    near_duplicates_removed: int
    duplicate_rule: str
    held_out: Held
    training: Held
    unigram_perplexity: float
    prompt: str
    sample: str
    sample_settings: str
    command: str


def render_language_card(report: LanguageReport) -> str:
    """The model card in Markdown."""
    recipe, held, training = report.recipe, report.held_out, report.training
    perplexity = f"{held.perplexity_low:.2f} to {held.perplexity_high:.2f}"
    bits = f"{held.bits_per_byte_low:.3f} to {held.bits_per_byte_high:.3f}"
    head_dim = int(recipe["hidden"]) // int(recipe["heads"])
    size = f"{report.parameters:,} parameters, {report.size_bytes / 2**20:.1f} MiB in all"
    return f"""---
license: psf-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {report.name}

A small Llama that writes Python in the manner of the standard library. It exists to be compressed: perplexity
rises step by step as ranks shrink, and the text that it writes falls apart.

**Dense perplexity {held.perplexity:.2f}** (95 % bootstrap interval {perplexity}),
**{held.bits_per_byte:.3f} bits per byte** ({bits}), n = {held.tokens:,} tokens ({held.bytes:,} bytes,
{held.passages} passages) of held-out files, in windows of {recipe["context"]} tokens side by side, measured on the
files in this folder after rounding to float16. Guessing each token as often as it occurs in training scores
{report.unigram_perplexity:.0f}. On the calibration passages, which are from training files, perplexity is
{training.perplexity:.2f}.

```
python -m flashsvd evaluate {report.name} --seed {report.seed}
```

## Data
- Source: the standard library of Python {report.python}, `*.py`, under the PSF License 2.0. The passages in
  `evaluation.parquet` and `calibration.parquet` are excerpts of it and carry the same licence.
- Split by file, within each topic of a family, by a seeded hash of the path: {report.train_files} training
  files, {report.eval_files} evaluation files, no file in both. The largest file of each topic is always in
  training, and so are the files of no family.
- A passage is consecutive lines of one file, {recipe["shortest"]} to {recipe["longest"]} tokens; at most
  {recipe["eval_per_family"]} of each family, from its files in turn, in shuffled order.
- Near-duplicates: {report.duplicate_rule} {report.near_duplicates_removed} pieces were removed.
- The tokenizer was trained on the training half only ({report.train_tokens:,} tokens).
- SHA-256 of the split (paths, halves, contents): `{report.split_sha256}`

## Model
`LlamaForCausalLM`, {recipe["layers"]} layers, hidden {recipe["hidden"]}, {recipe["heads"]} heads of {head_dim},
{recipe["kv_heads"]} key-value heads, SwiGLU of {recipe["intermediate"]}, context {recipe["context"]}, tied
embeddings, byte-level BPE of {recipe["vocab"]}, {size}. Weights are stored as float16 and
load as float32. `<s>` comes before a prompt, `</s>` ends a file.

## Training
Next token, {recipe["steps"]} steps of {recipe["batch"]} windows ({report.epochs:.1f} epochs), AdamW with warm-up and
cosine decay from {recipe["lr"]:g}, weight decay {recipe["weight_decay"]:g}, dropout {recipe["dropout"]:g}, seed
{report.seed}. Took {report.seconds:.0f} s on {report.device} with torch {report.torch}, transformers
{report.transformers}.

```
{report.command}
```

## What it writes
{report.sample_settings}. The first two lines are the prompt, one of a few that were tried. Without
sampling it soon repeats itself.

```python
{report.prompt}{report.sample}
```

## What it does not do
It knows one version of one library, and code that looks right is rarely right. It answers no questions and should
not be trusted with any.
"""
