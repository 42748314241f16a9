"""Files that come in: what was exported comes back, anything else is one line, and nothing is written or executed."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.recording import Recording, bundled, write
from flashsvd.results import Comparison, to_json
from flashsvd.runs import importing
from flashsvd.runs.export import read_kept, to_file, to_parquet
from flashsvd.runs.importing import MAX_BYTES, import_runs, read_runs
from flashsvd.runs.pages import unpacked_bytes
from flashsvd.store import RunStore
from tests.app import fakes
from tests.runs import kept


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "mine" / "runs.sqlite")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return to_file(kept.keep(tmp_path_factory.mktemp("out"), kept.comparison(), kept.curve(), name="mine"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("out") / "run.parquet"
    write(path, Recording(kept.comparison(), kept.curve(), {}, ""))
    return path.read_bytes()


def refused(data: bytes, words: str = "") -> str:
    """The one line that a file is turned away with."""
    with pytest.raises(InputError) as caught:
        read_runs(data)
    line = str(caught.value)
    assert "\n" not in line and 10 < len(line) < 400 and words in line, line
    return line


def test_what_was_exported_comes_back_once(store: RunStore, exported: bytes) -> None:
    report = import_runs(store, exported)
    assert len(report.added) == 2 and report.known == ()
    first = store.get(report.added[0])
    assert isinstance(first, Comparison) and first == kept.comparison()
    for run in kept.comparison().runs:
        mine = first.run(run.engine)
        assert mine is not None
        pd.testing.assert_frame_equal(mine.timeline, run.timeline)
    assert store.get(report.added[1]) == kept.curve()
    assert {row.name for row in store.rows()} == {"mine"}
    again = import_runs(store, exported)
    assert again.added == () and again.known == report.added and len(store.rows()) == 2
    # And out again, to the same bytes.
    rows = sorted(store.rows(), key=lambda row: row.id)
    assert to_file(read_kept(store, rows)) == exported


def test_a_deleted_run_comes_back_by_import(store: RunStore, exported: bytes) -> None:
    added = import_runs(store, exported).added
    store.delete(added)
    assert import_runs(store, exported).known == added and len(store.rows()) == 2


def test_every_recording_that_ships_is_imported(store: RunStore) -> None:
    for path in bundled():
        report = import_runs(store, path.read_bytes())
        assert report.added, path.name
        found = store.get(report.added[0])
        assert isinstance(found, Comparison) and all(not run.timeline.empty for run in found.runs)


def test_a_run_as_the_sidebar_exports_it_has_no_timeline(store: RunStore) -> None:
    report = import_runs(store, json.dumps(to_json(kept.comparison()), indent=1).encode())
    found = store.get(report.added[0])
    assert isinstance(found, Comparison) and all(run.timeline.empty for run in found.runs)


# Hostile files


class Boom:
    """Executes when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("unpickled",)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("runs.json", b"0" * 50_000_000)
    return buffer.getvalue()


def header() -> dict[bytes, bytes]:
    head = {
        "format": "flashsvd-recording/1",
        "comparison": to_json(kept.comparison()),
        "curve": None,
        "sigmas": [],
        "command": "",
    }
    return {b"flashsvd": json.dumps(head).encode()}


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(header()), buffer, **options)
    return buffer.getvalue()


def rows_of_zeros(rows: int) -> pa.Table:
    numbers = pa.array(np.zeros(rows, np.int64))
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x"]))
    columns = dict.fromkeys(("event", "layer", "bytes", "live_bytes", "time_ms"), numbers)
    return pa.table({**columns, **dict.fromkeys(("op", "module", "category", "engine"), texts)})


def test_300_mb_are_not_even_looked_at(store: RunStore) -> None:
    data = bytes(300_000_000)
    tracemalloc.start()
    refused(data, "at most 8 MiB")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_zip_and_gzip_and_pickle_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = zipped()
    assert len(bomb) < MAX_BYTES
    refused(bomb, "a ZIP archive")
    refused(b"\x1f\x8b" + bytes(100), "gzip")
    for protocol in range(6):
        refused(
            pickle.dumps({"runs": Boom()}, protocol), "" if protocol < 2 else "pickle, which is never opened"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = parquet(rows_of_zeros(2_000_000), compression="zstd", row_group_size=2_000_000)
    assert len(bomb) < MAX_BYTES
    before = pa.total_allocated_bytes()
    refused(bomb, "rows")
    assert pa.total_allocated_bytes() - before < 2**20
    wide = pa.table({**{f"c{n}": [1] for n in range(100)}})
    refused(parquet(wide), "100 columns")


@pytest.fixture(scope="module")
def long_texts() -> bytes:
    """A recording of few rows whose texts unpack to 100 MB."""
    table = rows_of_zeros(200)
    long = pa.array(["x" * 500_000] * 200)
    table = table.set_column(table.schema.get_field_index("op"), "op", long)
    return parquet(table, compression="zstd", use_dictionary=False)


def test_a_parquet_bomb_in_long_texts_is_refused(long_texts: bytes) -> None:
    assert len(long_texts) < MAX_BYTES // 10
    refused(long_texts, "unpacks to more than 64 MiB")


class LyingGroup:
    """A row group whose footer says that it is small."""

    total_byte_size = 1

    def __init__(self, group: Any) -> None:
        self.column = group.column


class LyingFooter:
    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.num_rows, self.num_columns = 200, metadata.num_columns
        self.num_row_groups = metadata.num_row_groups

    def row_group(self, number: int) -> LyingGroup:
        return LyingGroup(self.metadata.row_group(number))


def test_pages_are_measured_by_their_own_headers_not_by_the_footer(
    monkeypatch: pytest.MonkeyPatch, long_texts: bytes
) -> None:
    real = pq.ParquetFile

    class Lying(real):  # type: ignore[valid-type, misc]
        metadata = property(lambda self: LyingFooter(real.metadata.fget(self)))  # type: ignore[attr-defined]

    monkeypatch.setattr(importing.pq, "ParquetFile", Lying)
    refused(long_texts, "unpacks to more than 64 MiB")


@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}, {"data_page_size": 100}]
)
def test_page_headers_add_up_to_what_the_footer_says(options: dict[str, Any], recorded: bytes) -> None:
    table = pq.read_table(io.BytesIO(recorded))
    data = parquet(table, compression="zstd", **options)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    said = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    # The footer counts the headers too.
    assert 0.5 * said < unpacked_bytes(data, metadata) <= said


def test_a_parquet_file_cut_anywhere_is_refused(recorded: bytes) -> None:
    for length in (4, 8, 12, 100, len(recorded) // 2, len(recorded) - 500, len(recorded) - 1):
        refused(recorded[:length])


def test_damaged_bytes_of_a_parquet_file_never_break_through(recorded: bytes) -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(recorded)
        for place in random.integers(4, len(data), 20):
            data[place] = random.integers(256)
        try:
            read_runs(bytes(data))
        except InputError as error:
            assert "\n" not in str(error)


def test_a_table_that_is_no_recording_is_refused(tmp_path: Path, recorded: bytes) -> None:
    refused(to_parquet(kept.keep(tmp_path, kept.comparison())), "no recording")
    frame = pq.read_table(io.BytesIO(recorded)).drop_columns(["op"])
    refused(parquet(frame), "'op'")
    nested = pq.read_table(io.BytesIO(recorded))
    nested = nested.set_column(1, "op", pa.array([["a"]] * len(nested)))
    refused(parquet(nested), "'op'")


JSON_FILES = {
    "empty": b"",
    "spaces": b"  \n ",
    "binary": b"\xff\xfe\x00",
    "html": b"<html><script>alert(1)</script></html>",
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "deep object": b'{"format":' * 100_000,
    "number": b"3",
    "nan": b'{"format": NaN}',
    "long number": b'{"format": ' + b"9" * 10_000 + b"}",
    "another format": b'{"format": "flashsvd-runs/99", "runs": []}',
    "no runs": b'{"format": "flashsvd-runs/1", "runs": []}',
    "runs of nothing": b'{"format": "flashsvd-runs/1", "runs": [null]}',
    "a plan": b'{"format": "flashsvd-plan/1"}',
    "many": json.dumps({"format": "flashsvd-runs/1", "runs": [{}] * 501}).encode(),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_holds_no_runs_is_one_line(name: str) -> None:
    refused(JSON_FILES[name])


def changed(exported: bytes, path: str, value: Any) -> bytes:
    """The exported file with one value changed, such as "result.plan.shape.heads"."""
    data = json.loads(exported)
    here = data["runs"][0]
    *way, last = path.split(".")
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here[step]
    here[int(last) if isinstance(here, list) else last] = value
    return json.dumps(data).encode()


WRONG = {
    "a plan with 1e6 heads": ("result.plan.shape.layers.0.0.heads", 1_000_000),
    "a head for every row": ("result.plan.shape.layers.0.0.heads", 4097),
    "a model with 1e6 heads": ("result.model.shape.layers.0.0.heads", 1_000_000),
    "1e6 ranks": ("result.plan.layers.0.q", [3] * 1_000_000),
    "a thousand and one layers": ("result.plan.layers", [{}] * 1001),
    "no layers": ("result.model.shape.layers", []),
    "rank 1e9": ("result.plan.layers.0.up", [10**9]),
    "half a rank": ("result.plan.layers.0.up", [1.5]),
    "a size beyond any": ("result.model.shape.layers.0.0.in_features", 2**40),
    "a script as projection": ("result.model.shape.layers.0.0.name", "<img src=x onerror=alert(1)>"),
    "a script as engine": ("result.runs.0.engine", "<script>"),
    "an engine twice": ("result.runs.0.engine", "flash"),
    "no engines": ("result.runs", []),
    "text for a number": ("result.batch", "8"),
    "true for a number": ("result.batch", True),
    "a batch of zero": ("result.batch", 0),
    "a huge batch": ("result.batch", 10**6),
    "more than SQLite holds": ("result.runs.0.peak_activation_bytes", 2**70),
    "negative bytes": ("result.runs.0.peak_activation_bytes", -1),
    "quantiles out of order": ("result.runs.0.latency_ms.p20", 1e9),
    "a list for an object": ("result.runs.0.latency_ms", [1, 2, 3]),
    "no gate field": ("result.runs.2.gate", {}),
    "another precision": ("result.dtype", "fp8"),
    "no time": ("result.created", "yesterday"),
    "a score of 200 %": ("result.runs.0.metric.value", 2.0),
    "scored on nothing": ("result.runs.0.metric.n", 0),
    "a very long text": ("result.method", "x" * 10_000),
    "codes for a terminal": ("result.model.name", "x\x1b[2J"),
    "a name that is no text": ("name", ["x"]),
    "timelines as list": ("timelines", []),
    "a timeline of unequal columns": ("timelines.flash.bytes", [1]),
    "a timeline of texts": ("timelines.flash.bytes", ["1"] * 242),
    "a layer that is not there": ("timelines.flash.layer.3", 999),
    "another category": ("timelines.flash.category.3", "<b>"),
    "events backwards": ("timelines.flash.event.0", 10**6),
    "bytes beyond any": ("timelines.flash.bytes.0", 10**30),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_no_run_has_is_one_line(name: str, exported: bytes, store: RunStore) -> None:
    data = changed(exported, *WRONG[name])
    refused(data)
    with pytest.raises(InputError):
        import_runs(store, data)
    assert store.rows() == []


def test_nothing_is_written_when_the_last_run_of_a_file_is_wrong(exported: bytes, store: RunStore) -> None:
    data = json.loads(exported)
    data["runs"].append({"kind": "curve", "result": {"points": []}})
    with pytest.raises(InputError):
        import_runs(store, json.dumps(data).encode())
    assert store.rows() == []


def test_html_in_a_name_is_text(exported: bytes, store: RunStore) -> None:
    name = "<img src=x onerror=alert(1)>\n../../etc/passwd"
    import_runs(store, changed(exported, "name", name))
    assert "<img src=x onerror=alert(1)> ../../etc/passwd" in {row.name for row in store.rows()}
    assert [path.name.split("-")[0] for path in store.path.parent.iterdir()] == ["runs.sqlite"]


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    steps = (
        value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    )
    return [here, *(path for key, item in steps for path in paths(item, (*here, key)))]


SMALL = dataclasses.replace(
    kept.comparison(),
    runs=tuple(
        dataclasses.replace(run, timeline=fakes.events(100, layers=1, per_layer=4))
        for run in kept.comparison().runs
    ),
)
WHOLE = {
    "format": "flashsvd-runs/1",
    "runs": [
        {
            "kind": "compare",
            "name": "x",
            "result": json.loads(json.dumps(to_json(SMALL))),
            "timelines": {run.engine: run.timeline.to_dict("list") for run in SMALL.runs},
        },
        {
            "kind": "curve",
            "name": "",
            "result": json.loads(json.dumps(to_json(kept.curve()))),
            "timelines": {},
        },
    ],
}
PATHS = paths(WHOLE)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.sampled_from(PATHS), anything)
def test_any_one_value_changed_gives_a_run_or_one_line(path: tuple[Any, ...], value: Any) -> None:
    data = copy.deepcopy(WHOLE)
    if path:
        here: Any = data
        for step in path[:-1]:
            here = here[step]
        here[path[-1]] = value
    else:
        data = value
    try:
        found = read_runs(json.dumps(data).encode())
    except InputError as error:
        assert "\n" not in str(error)
    else:
        # What is let in can be shown: its facts, its table and its plan are computed without an error.
        from flashsvd.runs.facts import facts_of

        for item in found:
            facts_of("compare", to_json(item.result))
            if isinstance(item.result, Comparison):
                assert item.result.keep >= 0 and item.result.plan.to_text()


@given(st.binary(max_size=300))
def test_any_bytes_are_one_line(data: bytes) -> None:
    refused(data)


@given(st.binary(max_size=200))
def test_bytes_that_begin_like_parquet_are_one_line(data: bytes) -> None:
    refused(b"PAR1" + data + b"PAR1")
