"""Code to take away asks for exactly what is on screen."""

from __future__ import annotations

import shlex
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashsvd
from app import snippets
from app.state import Settings
from flashsvd.cli.commands import application as cli
from flashsvd.results import CompareRequest

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
some_settings = st.builds(
    Settings,
    model=words,
    method=st.sampled_from(["svd", "whiten", "asvd:alpha=0.3"]),
    keep=st.integers(1, 100).map(lambda p: p / 100),
    plan=st.none() | words,
    batch=st.integers(1, 64),
    seq=st.integers(1, 4096),
    dtype=st.sampled_from(["fp32", "bf16"]),
    per_head=st.booleans(),
)


def asked(code: str) -> CompareRequest:
    """The request that a snippet makes; nothing is run."""
    names: dict[str, Any] = {}
    exec(code.partition("result =")[0], names)
    request = names["request"]
    assert isinstance(request, CompareRequest)
    return request


@given(some_settings)
def test_the_program_asks_for_the_settings(settings: Settings) -> None:
    assert asked(snippets.python(settings)) == settings.compare_request()


def test_the_whole_program_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.app import fakes

    monkeypatch.setattr(flashsvd, "compare", lambda request: fakes.comparison(), raising=False)
    exec(snippets.python(Settings()), {})
    assert "flash" in capsys.readouterr().out


@given(some_settings)
def test_the_shell_line_is_one_that_a_shell_takes_apart_again(settings: Settings) -> None:
    parts = shlex.split(snippets.command(settings))
    assert parts[:5] == ["python", "-m", "flashsvd", "compare", settings.model]
    named = dict(zip(parts[5:-1:2], parts[6::2], strict=False))
    assert named["--batch"] == str(settings.batch) and named["--method"] == settings.method
    assert named.get("--rules") == settings.plan
    assert ("--whole" in parts) is not settings.per_head


def test_the_command_line_knows_every_option() -> None:
    import typer.main

    compare = typer.main.get_command(cli).commands["compare"]  # type: ignore[attr-defined]
    known = {
        option for parameter in compare.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    line = snippets.command(Settings(plan="*.up: 8", per_head=False))
    assert {word for word in shlex.split(line) if word.startswith("--")} <= known


def test_the_notebook_is_one() -> None:
    book = nbformat.reads(snippets.notebook(Settings(plan='*.up: 8 "')), as_version=4)
    nbformat.validate(book)
    assert asked(book.cells[0].source) == Settings(plan='*.up: 8 "').compare_request()
