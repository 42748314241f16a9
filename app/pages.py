"""The pages: every file in views, its title the first words of its docstring ("Title: the question it answers")."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

_VIEWS = Path(__file__).with_name("views")
_FIRST = ("overview", "ranks", "memory", "tiles", "accuracy", "generate", "roofline", "runs", "present")


@dataclass(frozen=True)
class View:
    """One page. name: its file's and its address's; question: what it answers."""

    name: str
    title: str
    question: str

    @property
    def path(self) -> str:
        """As streamlit wants it, from the folder of workbench.py."""
        return f"views/{self.name}.py"


@functools.cache
def views() -> tuple[View, ...]:
    """All pages, in the order of the header; ones that it does not know come last."""
    names = [path.stem for path in sorted(_VIEWS.glob("*.py")) if path.stem != "__init__"]
    ordered = sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return tuple(_view(name) for name in ordered)


def view_named(name: str) -> View | None:
    """A page by its name, None where there is none."""
    return next((view for view in views() if view.name == name), None)


def _view(name: str) -> View:
    words = ast.get_docstring(ast.parse((_VIEWS / f"{name}.py").read_text("utf-8"))) or name.capitalize()
    title, _, question = words.splitlines()[0].partition(": ")
    return View(name, title, question)
