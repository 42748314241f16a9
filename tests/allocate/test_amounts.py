from __future__ import annotations

import pytest

from flashsvd.allocate.amounts import parse_bytes, parse_count, parse_share
from flashsvd.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("3M", 3e6), ("1.5b", 1.5e9), ("2e9", 2e9), (" 12 ", 12), (".5k", 500)]
)
def test_counts(text: str, value: float) -> None:
    assert parse_count(text, "--parameters") == value


@pytest.mark.parametrize(
    ("text", "value"), [("8GB", 8e9), ("8GiB", 8 * 2**30), ("500 mb", 5e8), ("2kB", 2000), ("7B", 7)]
)
def test_sizes(text: str, value: float) -> None:
    assert parse_bytes(text, "--bytes") == value


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.02", 0.02), ("0 %", 0)])
def test_shares(text: str, value: float) -> None:
    assert parse_share(text, "--max-loss") == value


@pytest.mark.parametrize("text", ["", "M", "-3M", "3X", "1e999", "0", "nan", "8GB2"])
def test_what_cannot_be_read_is_one_line_with_an_example(text: str) -> None:
    for parse, example in ((parse_count, "3M"), (parse_bytes, "8GB")):
        with pytest.raises(InputError, match=f"--x takes .*{example}") as error:
            parse(text, "--x")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["101%", "2", "x", "1 k", "-1%"])
def test_a_share_is_at_most_all(text: str) -> None:
    with pytest.raises(InputError, match="--max-loss takes a share such as 1%"):
        parse_share(text, "--max-loss")
