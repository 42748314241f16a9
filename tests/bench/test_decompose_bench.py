"""`bench decompose`: times that stand beside a check, and a check that can fail."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from flashsvd.bench import decompose
from flashsvd.bench.decompose import DecomposeRequest, bench_decompose
from flashsvd.cli.commands import application
from flashsvd.errors import InputError, OutOfMemoryError
from flashsvd.methods import method_named

SMALL = DecomposeRequest(40, 70, ("svd", "fwsvd", "whiten", "whiten:sqrt=cholesky"), "cpu")


@pytest.mark.parametrize(("rows", "columns"), [(40, 70), (70, 40)])
def test_every_method_passes_its_own_check(rows: int, columns: int) -> None:
    result = bench_decompose(replace(SMALL, rows=rows, columns=columns))
    assert [row.method for row in result.rows] == list(SMALL.methods)
    assert all(row.passed and row.repeats == 3 and row.seconds.p50 > 0 for row in result.rows)


def test_factors_of_another_norm_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = replace(method_named("whiten"), decompose=method_named("svd").decompose)
    monkeypatch.setattr(decompose, "method_named", lambda spec: planted)
    (row,) = bench_decompose(replace(SMALL, methods=("whiten",))).rows
    assert not row.passed


def test_the_command_prints_times_and_verdicts() -> None:
    size = ["bench", "decompose", "--rows", "24", "--columns", "30", "--device", "cpu"]
    done = CliRunner().invoke(application, size)
    assert done.exit_code == 0 and done.stdout.count("the loss is the tail") == 2
    found = json.loads(CliRunner().invoke(application, [*size, "--json"]).stdout)
    assert found["rows"][1]["method"] == "whiten" and found["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"rows": 0}, InputError, "rows must be at least 1"),
        ({"methods": ()}, InputError, "at least one method"),
        ({"methods": ("asvd",)}, InputError, "no norm to check in"),
        ({"columns": 10**7}, OutOfMemoryError, "a matrix of 40 x 10000000"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    change: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        bench_decompose(replace(SMALL, **change))  # type: ignore[arg-type]
