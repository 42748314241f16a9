"""Short links: equal states have one hash, long ones come back whole, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import links
from flashsvd.errors import InputError

queries = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=400), max_size=12)


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))


@given(queries)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_query_comes_back_however_long(query: dict[str, str]) -> None:
    query.pop("s", None)
    short = links.shortened(query)
    assert links.expanded(short) == query
    assert len(urlencode(short)) <= links.LONGEST_ADDRESS


def test_equal_states_have_one_file(tmp_path: Path) -> None:
    first = links.keep({"a": "1", "b": "2"})
    assert links.keep({"b": "2", "a": "1"}) == first
    assert [path.name for path in (tmp_path / "links").iterdir()] == [f"{first}.json"]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "0" * 19, "G" * 20, "0" * 20, "0" * 20 + "\n"])
def test_what_is_not_kept_here_is_one_line(digest: str) -> None:
    with pytest.raises(InputError) as caught:
        links.find(digest)
    assert len(str(caught.value).splitlines()) == 1


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    digest = links.keep({"a": "1"})
    (tmp_path / "links" / f"{digest}.json").write_text('{"a":"2"}')
    with pytest.raises(InputError, match="was changed"):
        links.find(digest)


def test_other_data_is_no_state() -> None:
    with pytest.raises(InputError, match="something else"):
        links.expanded({"s": links.keep(["a"])})


def test_too_much_is_refused_and_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="up to"):
        links.keep("x" * 2**21)
    assert not (tmp_path / "links").exists()


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="FLASHSVD_HOME"):
        links.keep({"a": "1"})
