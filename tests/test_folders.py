"""A folder is written whole or not at all, whatever happens on the way."""

import errno
from pathlib import Path

import pytest

from flashsvd.errors import CheckpointError, InputError
from flashsvd.folders import new_folder


def _write(out: Path, text: str, *, force: bool = False) -> None:
    with new_folder(out, force=force) as folder:
        (folder / "config.json").write_text(text)


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    with new_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="No space left on device; nothing of it was kept"),
        new_folder(tmp_path / "model") as folder,
    ):
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_replaced_only_by_force_and_only_by_a_whole_one(tmp_path: Path) -> None:
    out = tmp_path / "model"
    _write(out, "first")
    with pytest.raises(InputError, match=r"holds a model already.*--force"):
        _write(out, "second")
    with pytest.raises(KeyboardInterrupt), new_folder(out, force=True) as folder:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (out / "config.json").read_text() == "first"
    _write(out, "third", force=True)
    assert (out / "config.json").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("x")
    with pytest.raises(InputError, match="is no model"):
        _write(tmp_path / "photos", "{}", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write to"):
        _write(tmp_path / "file" / "model", "{}")
