"""`export`: one of our compressed checkpoints as a plain folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from flashsvd.cli import options


def export(
    folder: Annotated[Path, typer.Argument(help="A compressed checkpoint.")],
    out: options.Out,
    form: Annotated[
        str,
        typer.Option(
            "--as", help="dense: for plain transformers; factors: two linears, in a published layout."
        ),
    ] = "dense",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a compressed checkpoint as dense weights, or as factors in a published layout."""
    from flashsvd.checkpoints.exporting import Form
    from flashsvd.checkpoints.exporting import export as run

    layout = run(folder, out, cast(Form, form), force=force)
    if as_json:
        print(json.dumps({"layout": layout, "out": str(out)}))
    else:
        print(f"wrote {out} ({layout})")
