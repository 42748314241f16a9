"""`bench decompose`: the time of one matrix, with the check of what comes out."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar


def decompose(
    rows: Annotated[int, typer.Option(help="Outputs of the linear.")] = 4096,
    columns: Annotated[int, typer.Option(help="Its inputs.")] = 11008,
    method: Annotated[str, typer.Option(help="Comma-separated: svd, fwsvd, whiten.")] = "svd,whiten",
    device: options.Device = "auto",
    repeats: Annotated[int, typer.Option(help="Timed repeats at most; 3 at least.")] = 3,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Time the decomposition of one matrix, statistics given, and check its loss against its singular values."""
    methods = options.parse_methods(method)
    from flashsvd.bench.decompose import DecomposeRequest, bench_decompose
    from flashsvd.results import to_json

    with progress_bar() as progress:
        result = bench_decompose(DecomposeRequest(rows, columns, methods, device, repeats, seed), progress)
    if as_json:
        print(json.dumps(to_json(result)))
    else:
        print(f"[{rows}, {columns}], {result.machine.label}")
        for row in result.rows:
            verdict = "the loss is the tail" if row.passed else "CHECK FAILED: the loss is not the tail"
            time = (
                f"{row.seconds.p50:.2f} s ({row.seconds.p20:.2f}-{row.seconds.p80:.2f}, {row.repeats} runs)"
            )
            print(f"{row.method:24} {time}  {verdict} ({row.tail_error:.0e})")
    if not all(row.passed for row in result.rows):
        raise typer.Exit(1)
