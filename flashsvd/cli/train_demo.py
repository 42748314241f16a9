"""`python -m flashsvd train-demo`: make a bundled checkpoint again."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError, format_bytes

NAMES = ("stdlib-bert",)


def train_demo(
    name: Annotated[str, typer.Argument(help="The checkpoint to make: stdlib-bert.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; assets/models/<name> if left out.")
    ] = None,
    stdlib: Annotated[
        Path | None, typer.Option(help="A standard library to learn from; the running Python's if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Classifier steps; the language model's scale with them.")
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

    from flashsvd.demo.train import train_stdlib_bert

    with progress_bar() as tell:
        report = train_stdlib_bert(
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
    typer.echo(
        f"{report.name}: accuracy {report.accuracy:.1%} "
        f"({report.accuracy_low:.1%} to {report.accuracy_high:.1%}, n = {report.eval_pieces}), "
        f"{len(report.families)} families, {format_bytes(report.size_bytes)}, {report.seconds:.0f} s"
    )


def _models_folder() -> Path:
    """The checkout's own assets, or those of the working folder when the library is installed elsewhere."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "assets").is_dir() else Path.cwd()) / "assets" / "models"
