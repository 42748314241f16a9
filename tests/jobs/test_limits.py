"""Limits read from the environment, and what is no limit."""

from __future__ import annotations

import pytest

from flashsvd.errors import InputError
from flashsvd.jobs.limits import Limits, limits_from


def test_nothing_set_is_an_hour_and_any_memory() -> None:
    assert limits_from({}) == Limits(3600.0, None)


@pytest.mark.parametrize(
    ("text", "count"), [("1000", 1000), ("1.5GiB", 3 * 2**29), ("6000 MB", 6 * 10**9), ("2kib", 2048)]
)
def test_memory_is_a_number_of_bytes_in_usual_units(text: str, count: int) -> None:
    assert limits_from({"FLASHSVD_JOB_MEMORY": text}).memory_bytes == count


@pytest.mark.parametrize("name", ["FLASHSVD_JOB_MEMORY", "FLASHSVD_JOB_SECONDS"])
@pytest.mark.parametrize("text", ["0", "-3", "many", "nan", "inf", "3 apples", "1.2.3"])
def test_what_is_no_limit_is_one_line(name: str, text: str) -> None:
    with pytest.raises(InputError, match=name) as caught:
        limits_from({name: text})
    assert len(str(caught.value).splitlines()) == 1
