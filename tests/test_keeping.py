"""Runs are kept and read back as they were: recordings and the run store."""

import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flashsvd.compare import compare
from flashsvd.errors import InputError
from flashsvd.recording import Recording, read, write
from flashsvd.results import (
    CompareRequest,
    Comparison,
    Curve,
    CurvePoint,
    Metric,
    PlanChoice,
    from_json,
    to_json,
)
from flashsvd.store import RunStore


@pytest.fixture(scope="module")
def comparison(tiny_folder: Path) -> Comparison:
    return compare(CompareRequest(str(tiny_folder), PlanChoice(keep=0.5), batch=2, seq=16, repeats=3))


@pytest.fixture(scope="module")
def curve(comparison: Comparison) -> Curve:
    metric = Metric("accuracy", 0.5, 100, 0.4, 0.6, 0.1, 0)
    point = CurvePoint(0.5, 0.48, 1000, comparison.plan.to_text(), metric)
    return Curve(
        comparison.created,
        comparison.machine,
        comparison.model,
        "svd",
        "fp32",
        0,
        18,
        1.5,
        metric,
        (point,) * 3,
    )


def _same(one: Comparison, other: Comparison) -> bool:
    tables = all(a.timeline.equals(b.timeline) for a, b in zip(one.runs, other.runs, strict=True))
    return one == other and tables


def test_a_recording_reads_back_as_it_was(comparison: Comparison, curve: Curve, tmp_path: Path) -> None:
    sigmas = {(0, "q"): np.linspace(3, 1, 64).reshape(2, 32), (2, "down"): np.linspace(9, 0, 64)[None]}
    file = tmp_path / "deep" / "run.parquet"
    write(file, Recording(comparison, curve, sigmas, "python -m flashsvd record"))
    found = read(file)
    assert _same(found.comparison, comparison)
    assert found.curve == curve and found.command == "python -m flashsvd record"
    for key, values in sigmas.items():
        np.testing.assert_allclose(found.sigmas[key], values, rtol=1e-6)
    assert [path.name for path in file.parent.iterdir()] == ["run.parquet"]


@pytest.mark.parametrize("damage", ["cut", "text", "table", "missing", "version"])
def test_a_file_that_is_no_recording_is_one_line(comparison: Comparison, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "run.parquet"
    write(file, Recording(comparison, None, {}, ""))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "text":
        file.write_text("hello")
    elif damage == "table":
        comparison.runs[0].timeline.to_parquet(file)
    elif damage == "missing":
        file.unlink()
    else:
        table = pq.read_table(file)
        header = table.schema.metadata[b"flashsvd"].replace(b"flashsvd-recording/1", b"flashsvd-recording/9")
        pq.write_table(table.replace_schema_metadata({b"flashsvd": header}), file)
    with pytest.raises(InputError) as error:
        read(file)
    assert "run.parquet" in str(error.value) and "\n" not in str(error.value)


def test_json_from_another_version_names_the_field(comparison: Comparison) -> None:
    data = to_json(comparison.machine)
    del data["cpu"]
    with pytest.raises(InputError, match="no field 'cpu'"):
        from_json(type(comparison.machine), data)


def test_the_store_keeps_and_finds_runs(comparison: Comparison, curve: Curve, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    assert store.latest("compare", comparison.model.name) is None
    first, second = store.add(comparison), store.add(curve)
    again = RunStore(tmp_path / "runs.sqlite")
    found = again.get(first)
    assert isinstance(found, Comparison) and _same(found, comparison)
    assert again.get(second) == curve == again.latest("curve", curve.model.name)
    assert [(row.id, row.kind) for row in again.rows()] == [(second, "curve"), (first, "compare")]
    assert again.rows(limit=1)[0].keep is None
    with pytest.raises(InputError, match="no run 99"):
        again.get(99)


def test_a_store_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("this is not a database, whatever its name says" * 40)
    with pytest.raises(InputError, match="not a run store"):
        RunStore(tmp_path / "a.sqlite")
    with sqlite3.connect(tmp_path / "b.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(InputError, match="version 7"):
        RunStore(tmp_path / "b.sqlite")
