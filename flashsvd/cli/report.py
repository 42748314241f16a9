"""`report`: bench recordings as Markdown tables, printed or kept between markers of a document."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.errors import InputError


def report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of `bench ... --save`; the bundled ones if none.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Put each table between its markers of this document.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Exit with 1 if a table in this document is another.")
    ] = None,
) -> None:
    """Print what `bench encoder`, `decode` and `prefill` recorded with --save as Markdown tables, or keep a document's
    tables up to date: encoders between bench markers, decode and prefill between decoders markers. A section of which
    nothing was recorded stays as it is."""
    if write is not None and check is not None:
        raise InputError("give one of --write and --check")
    from flashsvd.bench.report import between_markers, framed, read_all, sections_of, with_report
    from flashsvd.bench.report import report as tables_of
    from flashsvd.bench.saved import bundled_benches

    points = read_all(files or bundled_benches())
    document = write or check
    if document is None:
        print(tables_of(points))
        return
    before = text = _read(document)
    for section in sections_of(points):
        table = tables_of(points, section)
        if between_markers(text, document.name, section) != framed(table):
            text = with_report(text, document.name, table, section)
    if text == before:
        print(f"the tables in {document} are up to date")
    elif check is not None:
        print(f"the tables in {document} are stale: run report --write {document}", file=sys.stderr)
        raise typer.Exit(1)
    else:
        _write(document, text)
        print(f"wrote the tables in {document}")


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
