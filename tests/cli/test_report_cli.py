"""`report` as a person types it."""

from pathlib import Path

import pytest
from saved_points import saved, saved_decode
from typer.testing import CliRunner, Result

from flashsvd.bench.report import DECODERS, ENCODERS
from flashsvd.bench.saved import write_points
from flashsvd.cli.commands import application
from flashsvd.errors import InputError

BEGIN, END = ENCODERS.begin, ENCODERS.end


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.parquet"
    write_points(path, [saved(), saved(ranks="32,192,192")])
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "PAGE.md"
    path.write_text(f"before ×\n{BEGIN}\n{END}\nafter\n", encoding="utf-8")
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(application, ["report", *map(str, arguments)], catch_exceptions=False)


def test_a_file_is_printed_and_several_are_one_table(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    write_points(other, [saved(seq=128)])
    printed = _run(file, other).stdout
    assert printed.startswith("**bert-base**, bf16, H200\n") and printed.count("| 32 x ") == 3
    assert "python -m flashsvd bench encoder bert-base" in printed


def test_write_then_check_then_stale(file: Path, page: Path) -> None:
    assert _run(file, "--check", page).exit_code == 1
    assert "wrote the tables" in _run(file, "--write", page).stdout
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before ×\n{BEGIN}\n**bert-base**") and text.endswith(f"```\n{END}\nafter\n")
    assert _run(file, "--check", page).exit_code == 0
    assert "are up to date" in _run(file, "--write", page).stdout and page.read_text(encoding="utf-8") == text
    page.write_text(text.replace("7.00", "1.00"), encoding="utf-8")
    stale = _run(file, "--check", page)
    assert stale.exit_code == 1 and "are stale: run report --write" in stale.stderr
    assert "1.00" in page.read_text(encoding="utf-8")


def test_odd_arguments_are_one_line(file: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bare.md").write_text("no markers")
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        ((tmp_path / "missing.parquet",), "is not there"),
        ((page,), "is not a bench recording"),
        ((file, "--write", page, "--check", page), "give one of --write and --check"),
        ((file, "--write", tmp_path / "bare.md"), "must hold the line"),
        ((file, "--check", tmp_path / "missing.md"), "cannot read"),
        ((file, "--write", tmp_path / "binary"), "cannot read"),
        ((file, "--write", tmp_path), "cannot read"),
    )
    for arguments, words in cases:
        with pytest.raises(InputError, match=words) as error:
            _run(*arguments)
        assert "\n" not in str(error.value)


def test_decoders_are_written_between_markers_of_their_own(page: Path, tmp_path: Path) -> None:
    decoders = tmp_path / "decode.parquet"
    write_points(decoders, [saved_decode()])
    with pytest.raises(InputError, match="decoders:begin --> once, it is there 0 times"):
        _run(decoders, "--write", page)
    page.write_text(f"{page.read_text()}{DECODERS.begin}\n{DECODERS.end}\n")
    assert _run(decoders, "--check", page).exit_code == 1
    assert "wrote the tables" in _run(decoders, "--write", page).stdout
    text = page.read_text(encoding="utf-8")
    assert f"{DECODERS.begin}\n**llama-2-7b**, bf16, H200, decode" in text
    assert f"{BEGIN}\n{END}" in text
    assert _run(decoders, "--check", page).exit_code == 0
