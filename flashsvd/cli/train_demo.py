"""`python -m flashsvd train-demo`: make a bundled checkpoint again."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError, format_bytes

if TYPE_CHECKING:
    from flashsvd.demo.card import DemoReport
    from flashsvd.demo.language_card import LanguageReport

NAMES = ("stdlib-bert", "stdlib-llama")


def train_demo(
    name: Annotated[str, typer.Argument(help=f"The checkpoint to make: {' or '.join(NAMES)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; assets/models/<name> if left out.")
    ] = None,
    stdlib: Annotated[
        Path | None, typer.Option(help="A standard library to learn from; the running Python's if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps; those of stdlib-bert's first stage scale with them.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides the split, the pieces and the weights; 1 made what ships.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a small demo checkpoint on the Python standard library. Needs no network."""
    if name not in NAMES:
        raise InputError(f"expected one of {', '.join(NAMES)}, got {name!r}; choose a name from the list")
    if steps is not None and steps < 1:
        raise InputError(f"expected --steps of 1 or more, got {steps}; leave it out for the full training")
    if seed < 0:
        raise InputError(f"expected --seed of 0 or more, got {seed}; choose another seed")

    with progress_bar() as tell:
        report = _training(name)(
            out or _models_folder() / name,
            stdlib=stdlib,
            seed=seed,
            steps=steps,
            device=device,
            progress=lambda stage, done, total: tell(stage, done / max(total, 1)),
        )
    if json:
        typer.echo(json_module.dumps(asdict(report), indent=2))
        return
    typer.echo(f"{report.name}: {_score(report)}, {format_bytes(report.size_bytes)}, {report.seconds:.0f} s")


def _training(name: str) -> Callable[..., Any]:
    if name == "stdlib-llama":
        from flashsvd.demo.train_language import train_stdlib_llama

        return train_stdlib_llama
    from flashsvd.demo.train import train_stdlib_bert

    return train_stdlib_bert


def _score(report: DemoReport | LanguageReport) -> str:
    from flashsvd.demo.language_card import LanguageReport

    if isinstance(report, LanguageReport):
        held = report.held_out
        return (
            f"perplexity {held.perplexity:.2f} ({held.perplexity_low:.2f} to {held.perplexity_high:.2f}, "
            f"n = {held.tokens} tokens), {held.bits_per_byte:.3f} bits per byte"
        )
    return (
        f"accuracy {report.accuracy:.1%} ({report.accuracy_low:.1%} to {report.accuracy_high:.1%}, "
        f"n = {report.eval_pieces}), {len(report.families)} families"
    )


def _models_folder() -> Path:
    """The checkout's own assets, or those of the working folder when the library is installed elsewhere."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "assets").is_dir() else Path.cwd()) / "assets" / "models"
