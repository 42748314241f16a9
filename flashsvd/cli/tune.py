"""`tune`: times tiles for a model's kernels on this GPU, and keeps the fastest for later runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError

if TYPE_CHECKING:
    from flashsvd.kernels.tuned_store import Entry


def tune(
    model: Annotated[
        str | None, typer.Argument(help="A bundled name, a preset, a folder or a hub id; see `models`.")
    ] = None,
    keep: options.Keep = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: options.Batch = 8,
    seq: options.Seq = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    listed: Annotated[bool, typer.Option("--list", help="Show what is stored for this GPU.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is stored for this GPU.")] = False,
    as_json: options.Json = False,
) -> None:
    """Try other kernel tiles for a model and input shape on this GPU; FLASHSVD_AUTOTUNE=1 makes later runs use them."""
    if (model is not None) + listed + clear != 1:
        raise InputError("give one of MODEL, --list and --clear")
    choice = options.plan_choice(keep, ranks, plan, rules)
    from flashsvd.tune import TuneRequest, store_for, tune_model

    store = store_for(device)
    if clear:
        removed = store.clear()
        print(f"removed {store.path}" if removed else f"nothing is stored in {store.path}")
        return
    if model is None:
        entries, new = tuple(store.read().values()), None
    else:
        request = TuneRequest(model, choice, per_head, batch, seq, dtype, device, seed)
        with progress_bar() as progress:
            found = tune_model(request, progress)
        entries, new = tuple(one.entry for one in found), sum(one.is_new for one in found)
    if as_json:
        print(json.dumps({"file": str(store.path), "entries": [asdict(entry) for entry in entries]}))
        return
    _print(entries)
    timed = "" if new is None else f"{new} timed now, {len(entries) - new} found; "
    print(f"{timed}{len(entries)} {'entry' if len(entries) == 1 else 'entries'} of {store.path}")
    if new is not None:
        print("FLASHSVD_AUTOTUNE=1 in the environment makes runs use them; without it nothing changes.")


def _print(entries: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("kernel", "key", "default us", "best us", "gain", "tiles"):
        right = heading.endswith("us") or heading == "gain"
        table.add_column(heading, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for entry in entries:
        table.add_row(
            entry.kernel,
            entry.key,
            f"{entry.default_us:.1f}",
            f"{entry.chosen_us:.1f}",
            f"{entry.gain:.1%}" if entry.gain > 0 else "default",
            " ".join(f"{name}={_text(value)}" for name, value in entry.tiles.items()),
        )
    Console().print(table)


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
