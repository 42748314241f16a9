"""`import`: a checkpoint that another tool compressed, as one of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.cli import options


def import_(
    source: Annotated[Path, typer.Argument(help="The checkpoint: its folder, or the file of its weights.")],
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(
            help="The dense model, for a configuration, embeddings and norms that the source leaves out."
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin, .pt and .pth: their tensors alone.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Read a checkpoint of SVD-LLM, ASVD, Dobi-SVD, Basis Sharing, Palu or FlashSVD v1 and save it as ours."""
    from flashsvd.checkpoints import importers
    from flashsvd.checkpoints.imported import write
    from flashsvd.checkpoints.importing import import_checkpoint
    from flashsvd.folders import check_free

    check_free(out, force=force)
    found = import_checkpoint(source, base=base, allow_pickle=allow_pickle)
    write(found, out, force=force)
    title = importers()[found.method].title
    if as_json:
        row = {
            "layout": found.method,
            "family": found.family.model_type,
            "keep": found.plan.keep,
            "factored": len(found.factors),
            "out": str(out),
        }
        print(json.dumps(row))
        return
    print(f"{title}, {found.family.title}, {len(found.factors)} factored linears, {found.plan.summary()}")
    print(f"wrote {out}")
