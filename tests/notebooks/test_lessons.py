"""Every lesson is run from its source, as it was committed, and with its exercises solved."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
CELL_SECONDS, LESSON_SECONDS, LARGEST_BYTES = 20, 60, 1_000_000
OFTEN = ("03", "09", "11")
"""Lessons that run with all other tests: tiles, a decoder, statistics. `pytest -m long` runs the rest: two minutes."""
PARTS = (
    "**You will be able to**",
    "**Before this**",
    "## Can you spot it?",
    "## Exercise 1",
    "## Exercise 2",
    "<summary>Hint",
    "<summary>Solution",
    "## What this does not do",
    "## References",
)


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", NOTEBOOKS / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _make()


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cell: NotebookNode) -> list[object]:
    """What a cell puts out, without what differs by machine: digits, and how near a check came."""
    found: list[object] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            lines = [re.sub(r"^([✓✗○] [^:]*):.*", r"\1", line) for line in output.text.splitlines()]
            found.append((output.name, [re.sub(r"[\d.,e%+ -]*\d[\d.,e%+ -]*", "#", line) for line in lines]))
        else:
            found.append(sorted(set(output.data) - {"image/png"}))
    return found


def solutions(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Exercises: the code folded away below each, and the hidden cell that checks it."""
    found = []
    for number, cell in enumerate(notebook.cells):
        if "exercise" in tags(cell):
            check, below = notebook.cells[number + 1 : number + 3]
            assert "check" in tags(check) and "exercise(" in check.source, cell.source
            text = re.search(r"<summary>Solution</summary>\s+```python\n(.*?)```", below.source, re.DOTALL)
            assert text is not None, f"no solution below {cell.source}"
            stubs, defined = _defined(cell.source), _defined(text[1])
            assert stubs & defined, f"the solution defines {defined}, the stub {stubs}"
            found.append((text[1], check.source))
    return found


def _defined(source: str) -> set[str]:
    """Names that a piece of code gives a meaning to."""
    found = ast.parse(source).body
    functions = {node.name for node in found if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = [target for node in found if isinstance(node, ast.Assign) for target in node.targets]
    return functions | {target.id for target in assigned if isinstance(target, ast.Name)}


def _cells(text: str) -> str:
    """A lesson's source without its header, which names versions."""
    return text.split("# ---\n", 2)[2].strip()


def test_there_are_lessons_and_each_has_its_notebook() -> None:
    assert names(SOURCES) == names(sorted(NOTEBOOKS.glob("*.ipynb")))
    listed = (NOTEBOOKS / "README.md").read_text("utf-8")
    assert [source.name for source in SOURCES if source.with_suffix(".ipynb").name not in listed] == []


@pytest.mark.parametrize("source", SOURCES, ids=names(SOURCES))
def test_a_notebook_is_its_source(source: Path) -> None:
    path = source.with_suffix(".ipynb")
    committed, fresh = nbformat.read(path, as_version=4), make.read(source)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in fresh.cells], (
        f"run python notebooks/make.py {source.name[:2]}"
    )
    # Or JupyterLab refuses to open the pair.
    assert _cells(jupytext.writes(committed, fmt="py:percent")) == _cells(source.read_text("utf-8"))
    assert path.stat().st_size <= LARGEST_BYTES
    words = "\n".join(cell.source for cell in fresh.cells if cell.cell_type == "markdown")
    assert [part for part in PARTS if part not in words] == []
    assert any("question" in tags(cell) for cell in fresh.cells)
    assert any("bug" in tags(cell) for cell in fresh.cells)
    assert all(
        cell.metadata.get("jupyter", {}).get("source_hidden")
        for cell in code(fresh)
        if {"question", "check"} & set(tags(cell))
    )
    assert "widget-view" not in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        source if source.name[:2] in OFTEN else pytest.param(source, marks=pytest.mark.long)
        for source in SOURCES
    ],
    ids=names(SOURCES),
)
def test_a_lesson_runs_and_its_exercises_can_be_solved(source: Path) -> None:
    lesson = make.read(source)
    count = len(lesson.cells)
    proof = Path(__file__).with_name("proof.py").as_posix()
    lesson.cells.append(new_code_cell(f"exec(open({proof!r}, encoding='utf-8').read())"))
    lesson.cells += [new_code_cell(text) for pair in solutions(lesson) for text in pair]
    done = make.execute(lesson)
    own, proofs = done.notebook.cells[:count], done.notebook.cells[count + 1 :]

    committed = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    for mine, theirs in zip(code(NotebookNode(cells=own)), code(committed), strict=True):
        assert shown(mine) == shown(theirs), f"run python notebooks/make.py {source.name[:2]}:\n{mine.source}"
        marks = set(re.findall(r"^[✓✗○]", printed(mine), re.MULTILINE))
        wanted = {"✗"} if "bug" in tags(mine) else {"○"} if "check" in tags(mine) else set()
        assert marks - {"✓"} == wanted, (mine.source, printed(mine))
    assert max(done.seconds) < CELL_SECONDS and sum(done.seconds) < LESSON_SECONDS, done.seconds

    assert len(proofs) >= 4
    for cell in proofs[1::2]:
        lines = [line for line in printed(cell).splitlines() if line[0] in "✓✗○"]
        assert len([line for line in lines if " mistake of " in line]) >= 2, (
            "an exercise names its likely mistakes"
        )
        assert [line for line in lines if line[0] != "✓"] == []


@pytest.mark.slow
def test_the_notebook_that_the_app_exports_runs(scored_folder: Path) -> None:
    from app import snippets
    from app.state import Settings

    exported = snippets.notebook(Settings(model=str(scored_folder), batch=1, seq=16))
    run, figure = code(make.execute(nbformat.reads(exported, as_version=4)).notebook)
    assert all(engine in printed(run) for engine in ("dense", "lowrank", "flash"))
    assert make.PLOTLY in figure.outputs[-1].data
