"""The store: found again, filtered, sorted, deleted and brought back, by many at once, and from older versions."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flashsvd.curve_set import CostTable, PlanCost
from flashsvd.errors import InputError
from flashsvd.results import Comparison, Quantiles, to_json
from flashsvd.runs.rows import LONGEST_NAME, ORDERS, Wanted
from flashsvd.runs.schema import VERSION
from flashsvd.store import MOST_COSTS, PURGE_DAYS, RunStore
from tests.app import fakes
from tests.runs import kept

ROOT = Path(__file__).resolve().parents[2]

VERSION_1 = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    created TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    keep REAL,
    machine TEXT NOT NULL,
    result TEXT NOT NULL
);
CREATE INDEX runs_by_model ON runs (kind, model, id);
CREATE TABLE timelines (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    engine TEXT NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (run, engine)
);
PRAGMA user_version = 1;
"""


def add_as_version_1(path: Path, result: Comparison) -> None:
    """Writes a run as the first version of the store did."""
    with sqlite3.connect(path) as connection:
        cursor = connection.execute(
            "INSERT INTO runs (kind, created, model, method, keep, machine, result) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                "compare",
                result.created,
                result.model.name,
                result.method,
                result.keep,
                result.machine.label,
                json.dumps(to_json(result)),
            ),
        )
        for run in result.runs:
            connection.execute(
                "INSERT INTO timelines VALUES (?, ?, ?)",
                (cursor.lastrowid, run.engine, run.timeline.to_parquet(index=False)),
            )
    connection.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of version 1 with two runs, and one whose result is no JSON."""
    path = tmp_path / "runs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(VERSION_1)
    connection.close()
    add_as_version_1(path, kept.comparison(0.3))
    add_as_version_1(path, kept.comparison(0.6))
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO runs VALUES (3, 'compare', '2026', 'lost', 'svd', 0.5, 'CPU', 'no JSON at all')"
        )
    connection.close()
    return path


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home" / "runs.sqlite")


def numbers(store: RunStore, **wanted: object) -> list[int]:
    return [row.id for row in store.rows(1000, Wanted(**wanted))]  # type: ignore[arg-type]


def test_a_store_of_version_1_is_brought_up_to_date_with_all_its_runs(old: Path) -> None:
    store = RunStore(old)
    rows = {row.id: row for row in store.rows()}
    assert sorted(rows) == [1, 2, 3]
    assert (rows[1].engine, rows[1].batch, rows[1].seq, rows[1].dtype) == ("flash", 8, 256, "fp32")
    flash, dense = (kept.comparison(0.3).run(name) for name in ("flash", "dense"))
    assert flash is not None and dense is not None and flash.metric is not None
    assert rows[1].peak_bytes == flash.peak_activation_bytes and rows[1].median_ms == flash.latency_ms.p50
    assert rows[1].dense_ms == dense.latency_ms.p50 and rows[1].score == flash.metric.value
    assert rows[1].checked is True and rows[1].name == "" and not rows[1].pinned
    assert store.get(1) == kept.comparison(0.3) and store.get(2) == kept.comparison(0.6)
    with sqlite3.connect(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    with pytest.raises(InputError, match="run 3 cannot be read"):
        store.get(3)


def test_an_old_run_has_the_digest_of_the_same_run_added_today(old: Path) -> None:
    store = RunStore(old)
    number = store.add(kept.comparison(0.3))
    rows = {row.id: row.digest for row in store.rows()}
    assert rows[1] == rows[number] != rows[2]


def test_a_program_of_version_1_that_still_runs_loses_nothing(old: Path) -> None:
    store = RunStore(old)
    add_as_version_1(old, kept.comparison(0.9))
    assert numbers(store) == [4, 3, 2, 1]
    store.pin((4,))
    assert store.rows()[0].id == 4 and store.rows()[0].peak_bytes is not None


def test_a_migration_that_fails_leaves_version_1_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("flashsvd.store.enter_missing", fail)
        with pytest.raises(InputError, match="disk I/O error"):
            RunStore(old)
    with sqlite3.connect(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone()
    connection.close()
    assert len(RunStore(old).rows()) == 3


def test_filters_and_words(store: RunStore) -> None:
    first = store.add(kept.comparison(0.5), "best of ten")
    second = store.add(kept.comparison(0.5, method="asvd"), "100%_sure")
    third = store.add(kept.curve())
    assert numbers(store, model="stdlib-bert") == [third, second, first] and numbers(store, model="x") == []
    assert numbers(store, method="asvd") == [second] and numbers(store, kind="curve") == [third]
    assert numbers(store, text="BEST ten") == [first] and numbers(store, text=f"#{third}") == [third]
    assert numbers(store, text="%") == [second] and numbers(store, text="100%_") == [second]
    assert numbers(store, text="'; DROP TABLE runs; --") == [] and len(store.rows()) == 3
    assert numbers(store, text="x%" * 100_000) == []
    assert store.values("method") == ["asvd", "svd"] and store.values("kind") == ["compare", "curve"]


def test_every_order(store: RunStore) -> None:
    low = store.add(fakes.comparison(0.7, flash_ms=50.0, score=0.70), "b")
    high = store.add(fakes.comparison(0.3, flash_ms=90.0, score=0.90), "a")
    curve = store.add(kept.curve())
    expected = {
        "newest": [curve, high, low],
        "oldest": [low, high, curve],
        "least memory": [high, low, curve],
        "fastest": [low, high, curve],
        "best score": [high, low, curve],
        "smallest keep": [high, low, curve],
        "name": [high, low, curve],
    }
    assert set(expected) == set(ORDERS)
    for order, wanted in expected.items():
        assert numbers(store, order=order) == wanted, order
    store.pin((low,))
    assert all(numbers(store, order=order)[0] == low for order in ORDERS)
    with pytest.raises(InputError, match="sorted by one of"):
        numbers(store, order="id; DROP TABLE runs")


def test_the_best_perplexity_is_the_lowest(store: RunStore) -> None:
    bad = store.add(fakes.language(fakes.comparison(), 9.0))
    good = store.add(fakes.language(fakes.comparison(), 5.0))
    assert numbers(store, order="best score") == [good, bad]


def test_names_are_one_short_line(store: RunStore) -> None:
    number = store.add(kept.comparison())
    store.rename(number, "  two\nlines\x00\u202e and  more ")
    assert store.rows()[0].name == "two lines and more"
    store.rename(number, "x" * 500)
    assert store.rows()[0].name == "x" * LONGEST_NAME
    store.rename(number, "")
    assert store.rows()[0].title == f"#{number} stdlib-bert svd 50 %"


def test_deleted_runs_are_hidden_come_back_and_are_purged_later(store: RunStore) -> None:
    first, second = store.add(kept.comparison(0.3)), store.add(kept.comparison(0.6))
    now = datetime(2026, 11, 20, tzinfo=UTC)
    store.delete((second,), now)
    assert numbers(store) == [first] and numbers(store, deleted=True) == [second]
    assert store.latest("compare", "stdlib-bert") == kept.comparison(0.3)
    assert store.count_deleted() == 1 and store.values("model") == ["stdlib-bert"]
    store.restore((second,))
    assert numbers(store) == [second, first] and store.count_deleted() == 0
    store.delete((first,), now)
    assert store.purge(now + timedelta(days=PURGE_DAYS - 1)) == 0
    assert store.purge(now + timedelta(days=PURGE_DAYS)) == 1
    assert numbers(store, deleted=True) == [] and numbers(store) == [second]
    with pytest.raises(InputError, match="no run 1"):
        store.get(first)
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT DISTINCT run FROM timelines").fetchall() == [(second,)]
    connection.close()


def test_many_threads_write_and_read_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    problems: list[BaseException] = []
    result = kept.comparison()

    def work(thread: int) -> None:
        try:
            store = RunStore(path)
            for turn in range(5):
                number = store.add(result, f"{thread}.{turn}")
                store.pin((number,))
                assert store.rows(1000) and store.get(number) == result
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    rows = RunStore(path).rows(1000)
    assert {row.name for row in rows} == {f"{a}.{b}" for a in range(8) for b in range(5)}
    assert len(rows) == 40 and all(row.pinned for row in rows)


WRITER = """
import pickle, sys, time
from pathlib import Path
from flashsvd.store import RunStore
folder, me = Path(sys.argv[1]), sys.argv[2]
result = pickle.loads((folder / "result").read_bytes())
(folder / f"ready{me}").touch()
while not (folder / "go").exists():
    time.sleep(0.002)
for turn in range(5):
    for name in ("new", "runs"):
        RunStore(folder / f"{name}.sqlite").add(result, f"{me}.{turn}")
"""


@pytest.mark.slow
def test_processes_that_open_at_once_make_one_store_and_migrate_another(tmp_path: Path, old: Path) -> None:
    (tmp_path / "result").write_bytes(pickle.dumps(kept.comparison()))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    while not all((tmp_path / f"ready{number}").exists() for number in range(3)):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.02)
    (tmp_path / "go").touch()
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    wanted = sorted(f"{a}.{b}" for a in range(3) for b in range(5))
    assert sorted(row.name for row in RunStore(tmp_path / "new.sqlite").rows(100)) == wanted
    rows = RunStore(old).rows(100)
    assert sorted(row.name for row in rows if row.name) == wanted and len(rows) == 3 + 15


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


def test_a_store_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        RunStore(tmp_path / "file" / "runs.sqlite")
    assert "FLASHSVD_HOME" in one_line(error)
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(InputError) as error:
        RunStore(tmp_path / "folder.sqlite")
    assert "cannot be kept" in one_line(error)
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE songs (id INTEGER)")
    connection.close()
    with pytest.raises(InputError) as error:
        RunStore(tmp_path / "other.sqlite")
    assert "other tables" in one_line(error)
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]
    connection.close()


def test_a_store_whose_folder_is_emptied_goes_on_in_a_new_file(store: RunStore) -> None:
    store.add(kept.comparison())
    for path in store.path.parent.iterdir():
        path.unlink()
    store.path.parent.rmdir()
    assert store.rows() == []
    assert numbers(store) == [] and store.add(kept.comparison()) == 1 and numbers(store) == [1]


def test_a_store_that_is_damaged_later_is_one_line(store: RunStore) -> None:
    store.add(kept.comparison())
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(store.path.read_bytes())
    data[100:8192] = b"\x55" * (8192 - 100)
    store.path.write_bytes(bytes(data))
    for call in (store.rows, lambda: store.get(1), lambda: store.add(kept.comparison())):
        with pytest.raises(InputError) as error:
            call()
        assert "not a run store" in one_line(error)


def test_a_result_without_flash_is_listed_by_what_it_ran(store: RunStore) -> None:
    full = kept.comparison()
    store.add(dataclasses.replace(full, runs=full.runs[:2]))
    store.add(dataclasses.replace(full, runs=full.runs[:1]))
    store.add(dataclasses.replace(full, runs=()))
    assert [row.engine for row in store.rows()] == ["", "dense", "lowrank"]


def table(model: str = "stdlib-bert", ms: float = 5.0) -> CostTable:
    cost = PlanCost("*.up: 8", 1, "flash", Quantiles(ms, ms, ms), 2**20, 2**21)
    return CostTable("2026-11-20", fakes.MACHINE, model, True, 8, 256, "fp32", 5, cost, (cost,))


def test_costs_of_plans_are_kept_by_model_newest_first(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    store.add_costs(table(ms=5.0))
    store.add_costs(table("other"))
    store.add_costs(table(ms=6.0))
    again = RunStore(tmp_path / "runs.sqlite")
    assert again.costs("stdlib-bert") == [table(ms=6.0), table(ms=5.0)]
    assert again.costs("none") == [] and again.rows() == []
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE costs SET result = '{' WHERE id = 3")
    assert again.costs("stdlib-bert") == [table(ms=5.0)]


def test_old_costs_make_room(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    for number in range(MOST_COSTS + 3):
        store.add_costs(table(ms=float(number)))
    found = store.costs("stdlib-bert")
    assert len(found) == MOST_COSTS and found[-1] == table(ms=3.0)


def test_a_store_of_version_1_takes_costs(old: Path) -> None:
    store = RunStore(old)
    store.add_costs(table())
    assert store.costs("stdlib-bert") == [table()]
