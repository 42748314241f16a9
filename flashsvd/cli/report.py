"""`report`: bench recordings as a Markdown table, printed or kept between two markers of a document."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.errors import InputError


def report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of `bench encoder --save`; the bundled ones if none.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Put the table between the markers of this document.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Exit with 1 if the table in this document is another.")
    ] = None,
) -> None:
    """Print what `bench encoder --save` recorded as a Markdown table, or keep a document's table up to date."""
    if write is not None and check is not None:
        raise InputError("give one of --write and --check")
    from flashsvd.bench.report import between_markers, framed, read_all, with_report
    from flashsvd.bench.report import report as table_of
    from flashsvd.bench.saved import bundled_benches

    table = table_of(read_all(files or bundled_benches()))
    document = write or check
    if document is None:
        print(table)
        return
    text = _read(document)
    if between_markers(text, document.name) == framed(table):
        print(f"the table in {document} is up to date")
    elif check is not None:
        print(f"the table in {document} is stale: run report --write {document}", file=sys.stderr)
        raise typer.Exit(1)
    else:
        _write(document, with_report(text, document.name, table))
        print(f"wrote the table in {document}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from None
