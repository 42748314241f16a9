"""Every example, written once and never changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from published import EXAMPLES, Example

Made = Callable[[str], Example]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """example(name): one of EXAMPLES; treat it as read-only."""
    made: dict[str, Example] = {}

    def make(name: str) -> Example:
        if name not in made:
            made[name] = EXAMPLES[name](tmp_path_factory.mktemp("example") / "source")
        return made[name]

    return make
