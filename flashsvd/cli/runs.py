"""`runs`: what was kept, as a list, as files, and in again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli.options import Json
from flashsvd.errors import InputError

if TYPE_CHECKING:
    from flashsvd.runs.export import Kept
    from flashsvd.runs.rows import RunRow

_MOST = 5000


def runs(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Numbers of runs; all that match if none.")
    ] = None,
    find: Annotated[str, typer.Option(help="Words of the name, model, method, machine or precision.")] = "",
    sort: Annotated[
        str, typer.Option(help="newest, oldest, least memory, fastest, best score, smallest keep or name.")
    ] = "newest",
    out: Annotated[
        Path | None, typer.Option(help="Write them to a .csv, .parquet or .json file; one or two to .html.")
    ] = None,
    take: Annotated[
        Path | None, typer.Option(help="First take in a .json file of runs, or a recording.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs that the app and the commands have kept, write them to a file, or take a file in."""
    from flashsvd.runs.importing import MAX_BYTES, import_runs
    from flashsvd.runs.rows import Wanted
    from flashsvd.store import RunStore

    store = RunStore()
    if take is not None:
        try:
            with take.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read {take}: {error.strerror or error}") from None
        report = import_runs(store, data)
        numbers = [*report.added, *report.known]
    if numbers:
        rows = [row for row in map(store.row, numbers) if row is not None]
        if len(rows) < len(numbers):
            raise InputError(f"there is no run {next(n for n in numbers if store.row(n) is None)}")
    else:
        rows = store.rows(_MOST, Wanted(text=find, order=sort))
    if out is not None:
        from flashsvd.runs.export import read_kept

        write = _writer(out)
        content = write(read_kept(store, rows))
        try:
            out.write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    elif out is not None:
        print(f"wrote {out} ({len(rows)} runs)")
    else:
        _print(rows)


def _writer(out: Path) -> Callable[[Sequence[Kept]], bytes]:
    from flashsvd.runs.export import to_csv, to_file, to_parquet
    from flashsvd.runs.html import page

    writers = {".csv": to_csv, ".parquet": to_parquet, ".json": to_file, ".html": page}
    if out.suffix not in writers:
        raise InputError(f"runs are written to {', '.join(writers)} files, got {out.name}")
    return writers[out.suffix]


def _print(rows: Sequence[RunRow]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in (
        "run",
        "name",
        "model",
        "method",
        "keep",
        "input",
        "peak",
        "median",
        "score",
        "machine",
        "when",
    ):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(text) for text in _cells(row)))
    console = Console()
    console.print(table if rows else "no run is kept that matches")


def _cells(row: RunRow) -> tuple[str, ...]:
    from flashsvd.side_by_side import shown

    score = shown(row.score, "" if row.lower_is_better else "%") if row.score is not None else ""
    return (
        f"{row.id}{'*' if row.pinned else ''}",
        row.name,
        row.model,
        row.method,
        "" if row.keep is None else shown(row.keep, "%"),
        f"{row.points} points" if row.points is not None else f"{row.batch} x {row.seq}, {row.dtype}",
        "" if row.peak_bytes is None else shown(row.peak_bytes, "bytes"),
        "" if row.median_ms is None else shown(row.median_ms, "ms"),
        f"{score} {row.metric.rpartition('/')[2]}".strip(),
        row.machine,
        row.created[:10],
    )
