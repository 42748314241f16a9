"""Which files are read, what class each gets, and that no file is on both sides of the split."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashsvd.demo.corpus import (
    Split,
    family_of,
    python_version,
    read_sources,
    split_by_file,
    standard_library,
)
from flashsvd.errors import InputError


@pytest.fixture(scope="module")
def real_split() -> Split:
    if not (standard_library() / "test").is_dir():
        pytest.skip("this Python comes without the standard library's tests")
    return split_by_file(read_sources(standard_library()))


def paths(files: tuple) -> set[str]:
    return {file.path for file in files}


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("asyncio/events.py", "asyncio"),
        ("test/test_asyncio/test_locks.py", "asyncio"),
        ("test/test_email/test_message.py", "email"),
        ("multiprocessing/pool.py", "concurrent"),
        ("concurrent/futures/thread.py", "concurrent"),
        ("test/test_decimal.py", "numbers"),
        ("turtledemo/clock.py", "tkinter"),
        ("this.py", None),
    ],
)
def test_a_file_and_its_tests_share_a_family(path: str, family: str | None) -> None:
    assert family_of(path)[0] == family


def test_installed_packages_and_undecodable_files_are_left_out(fake_stdlib: Path) -> None:
    found = paths(read_sources(fake_stdlib))
    assert "asyncio/module_0.py" in found
    assert not any("site-packages" in path for path in found)
    assert "asyncio/latin.py" not in found


def test_every_file_is_in_exactly_one_half(fake_stdlib: Path) -> None:
    files = read_sources(fake_stdlib)
    split = split_by_file(files)
    assert split.families == ("asyncio", "email")
    assert not paths(split.training_half) & paths(split.evaluation)
    assert paths(split.training_half) | paths(split.evaluation) == paths(files)
    assert paths(split.unlabelled) == {"antigravity.py"}


def test_the_split_depends_on_the_seed_and_on_nothing_else(fake_stdlib: Path) -> None:
    files = read_sources(fake_stdlib)
    again = split_by_file(reversed(files), seed=3)
    assert split_by_file(files, seed=3) == again
    assert split_by_file(files, seed=3).digest() == again.digest()
    assert len({paths(split_by_file(files, seed=seed).evaluation).__repr__() for seed in range(8)}) > 1


def test_the_largest_file_of_a_topic_is_never_held_out(fake_stdlib: Path) -> None:
    files = read_sources(fake_stdlib)
    largest = max((file for file in files if file.family == "email"), key=lambda file: len(file.text))
    assert all(largest.path in paths(split_by_file(files, seed=seed).train) for seed in range(20))


def test_a_family_with_too_few_files_loses_its_class(fake_stdlib: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least 2 families"):
        split_by_file(read_sources(fake_stdlib), min_files=11)
    with pytest.raises(InputError, match="no Python source"):
        read_sources(tmp_path)


def test_the_version_of_a_copy_is_read_from_its_name(fake_stdlib: Path, tmp_path: Path) -> None:
    assert python_version(fake_stdlib) == "3.99"
    assert python_version(standard_library()).count(".") == 2
    assert python_version(tmp_path / "lib") == "unknown"


def test_the_real_library_has_enough_classes_and_files(real_split: Split) -> None:
    assert len(real_split.families) >= 16
    assert not paths(real_split.training_half) & paths(real_split.evaluation)
    for family in real_split.families:
        train = [file for file in real_split.train if file.family == family]
        held = [file for file in real_split.evaluation if file.family == family]
        assert len(train) >= 4 and len(held) >= 3, family
        held_share = sum(len(f.text) for f in held) / sum(len(f.text) for f in [*train, *held])
        assert 0.1 < held_share < 0.6, family
