"""`models`: what can be run without a download."""

from __future__ import annotations

import json

from flashsvd.cli.options import Json


def models(as_json: Json = False) -> None:
    """List the bundled models, the presets, and the families that hub ids and folders may be of."""
    from flashsvd.models.family import families
    from flashsvd.models.sources import catalogue

    found = catalogue()
    if as_json:
        rows = [{"name": source.name, "kind": source.kind, "title": source.title} for source in found]
        print(json.dumps({"models": rows, "families": sorted(families())}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("name", "kind", "what it is"):
        table.add_column(heading)
    for source in found:
        table.add_row(source.name, source.kind, source.title)
    console = Console()
    console.print(table)
    console.print(
        f"\nFolders and hub ids of these families load too (safetensors only): {', '.join(sorted(families()))}."
    )
