"""A standard library in miniature: two families of ten files and some files of neither."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flashsvd.demo.language import LanguageRecipe
from flashsvd.demo.learn import Recipe

WORDS = {
    "asyncio": ("loop", "future", "task", "await_all", "transport", "protocol"),
    "email": ("header", "message", "address", "charset", "mime_part", "payload"),
}


def write_module(path: Path, words: tuple[str, ...], seed: int, n_functions: int = 12) -> None:
    draw = random.Random(seed)
    lines = [f"import {words[0]}", "", "class Thing:"]
    for index in range(n_functions):
        first, second = draw.choice(words), draw.choice(words)
        lines += [
            f"    def {first}_{second}_{draw.randrange(1000)}(self, {first}):",
            f"        self.{second} = {first} + {draw.randrange(1000)} * {index}",
            f"        return self.{second}.{first}({draw.randrange(1000)})",
            "",
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


@pytest.fixture(scope="session")
def fake_stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lib") / "python3.99"
    for family, words in WORDS.items():
        for index in range(10):
            write_module(root / family / f"module_{index}.py", words, seed=index)
    write_module(root / "antigravity.py", ("fly", "xkcd"), seed=1)
    write_module(root / "site-packages" / "asyncio" / "other.py", WORDS["asyncio"], seed=2)
    (root / "asyncio" / "latin.py").write_bytes(b"# caf\xe9\n" * 100)
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small run faster on one thread than on a shared pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return Recipe(
        mlm_steps=5,
        steps=60,
        batch=16,
        lr=5e-3,
        layers=1,
        hidden=32,
        heads=2,
        vocab=400,
        shortest=30,
        longest=80,
        eval_per_family=20,
        calibration_pieces=16,
    )


@pytest.fixture(scope="session")
def tiny_language() -> LanguageRecipe:
    return LanguageRecipe(
        steps=60,
        batch=8,
        lr=1e-2,
        context=64,
        layers=1,
        hidden=32,
        heads=2,
        kv_heads=1,
        intermediate=64,
        vocab=400,
        shortest=30,
        longest=80,
        eval_per_family=12,
        calibration_pieces=16,
    )
