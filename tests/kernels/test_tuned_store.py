"""The file of tuned tiles: what goes in comes out, from several processes too, and damage is one warning."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.kernels import tuned_store
from flashsvd.kernels.tuned_store import MOST_ENTRIES, Entry, Store

STORE = Store("NVIDIA H200", "3.6.0")
ENTRY = Entry("norm", "bfloat16 rows=8", {"block_m": 4, "parts": [32, 16]}, 10.0, 9.0, "2026-01-01T00:00:00")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    tuned_store.warn.cache_clear()
    yield


fields = st.dictionaries(
    st.text(max_size=8),
    st.one_of(st.booleans(), st.integers(0, 2**20), st.lists(st.one_of(st.integers(), st.booleans()))),
    max_size=5,
)
times = st.floats(1e-3, 1e9)
entries = st.builds(Entry, st.text(max_size=9), st.text(), fields, times, times, st.text(max_size=20))


@settings(max_examples=40)
@given(st.lists(entries, max_size=6), st.lists(entries, max_size=6))
def test_what_is_added_is_read_and_the_last_counts(first: list[Entry], second: list[Entry]) -> None:
    STORE.clear()
    STORE.add(first)
    STORE.add(second)
    assert STORE.read() == {(entry.kernel, entry.key): entry for entry in (*first, *second)}


def test_gpus_and_versions_have_files_of_their_own() -> None:
    others = [Store("NVIDIA H200", "3.7.0"), Store("NVIDIA A100-SXM4-80GB", "3.6.0")]
    STORE.add([ENTRY])
    assert len({store.path for store in (STORE, *others)}) == 3
    assert all(store.read() == {} for store in others)
    assert STORE.path.name == "nvidia-h200-triton-3.6.0.json" and STORE.path.parent.name == "tuning"
    assert "/" not in Store("../../a b/c", "3").path.name and not Store("..", "..").path.name.startswith(".")


def test_threads_and_processes_lose_nothing() -> None:
    code = "\n".join(
        [
            "import sys",
            "from flashsvd.kernels.tuned_store import Entry, Store",
            "for i in range(10):",
            "    Store('NVIDIA H200', '3.6.0').add([Entry('p' + sys.argv[1], str(i), {}, 1.0, 1.0, '')])",
        ]
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(one)], cwd=Path.cwd()) for one in range(2)]

    def add(name: str) -> None:
        for i in range(10):
            STORE.add([replace(ENTRY, kernel=name, key=str(i))])

    threads = [threading.Thread(target=add, args=(f"t{one}",)) for one in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in started] == [0, 0]
    assert set(STORE.read()) == {(name, str(i)) for name in ("p0", "p1", "t0", "t1") for i in range(10)}
    assert sorted(path.suffix for path in STORE.path.parent.iterdir()) == [".json", ".lock"]


def document(**changes: Any) -> str:
    STORE.add([ENTRY])
    return json.dumps(json.loads(STORE.path.read_text()) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "not of format"),
        ({"gpu": "NVIDIA A100"}, "of gpu 'NVIDIA A100'"),
        ({"triton": "3.5.0"}, "of triton '3.5.0'"),
        ({"library": "0.0.1"}, "of library '0.0.1'"),
        ({"entries": {}}, "no list of entries"),
    ],
)
def test_a_foreign_file_is_one_warning(
    changes: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = document(**changes)
    STORE.path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert STORE.read() == STORE.read() == {}
    (record,) = caplog.records
    assert words in record.getMessage() and "\n" not in record.getMessage()
    STORE.add([ENTRY])
    assert list(STORE.read().values()) == [ENTRY]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"[" * 100_000, b"NaN"])
def test_a_damaged_file_is_one_warning(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    STORE.add([ENTRY])
    STORE.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert STORE.read() == STORE.read() == {}
    assert len(caplog.records) == 1


def test_rows_that_are_no_entries_are_passed_over() -> None:
    good = json.loads(document())["entries"][0]
    bad = [
        7,
        [],
        {},
        good | {"more": 1},
        good | {"tiles": []},
        good | {"kernel": None},
        good | {"chosen_us": "9"},
        good | {"default_us": 0},
        good | {"default_us": True},
        good | {"chosen_us": float("nan")},
        good | {"chosen_us": float("inf")},
    ]
    STORE.path.write_text(document(entries=[*bad, good]))
    assert list(STORE.read().values()) == [ENTRY]


def test_a_home_that_cannot_be_written_to_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        STORE.add([ENTRY])
        STORE.add([ENTRY])
        assert STORE.read() == {}
    assert "were not stored" in caplog.records[0].getMessage()
    assert len({record.getMessage() for record in caplog.records}) == len(caplog.records) <= 2


def test_the_file_is_bounded_and_can_be_removed() -> None:
    STORE.add([replace(ENTRY, key=str(i)) for i in range(MOST_ENTRIES + 5)])
    assert len(STORE.read()) == MOST_ENTRIES and ("norm", "0") not in STORE.read()
    assert STORE.clear() and not STORE.clear() and STORE.read() == {}
    STORE.path.mkdir()
    with pytest.raises(InputError, match="cannot remove"):
        STORE.clear()
