"""The library's own source in a lesson: what is read is what runs."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from flashsvd.teaching.pictures import shown


def shipped(*things: Any, docstrings: bool = False, after: str = "", before: str = "") -> None:
    """Shows the source of functions, classes or Triton kernels as they ship, with the file they are in.

    `after` and `before` cut to the lines from the first that holds the one text up to the first then that holds the
    other.
    """
    for thing in things:
        text = fenced(thing, docstrings=docstrings, after=after, before=before)
        shown({"text/markdown": text, "text/plain": text})


def fenced(thing: Any, *, docstrings: bool = False, after: str = "", before: str = "") -> str:
    """The Markdown that `shipped` shows.

    >>> from flashsvd.figures.theme import faded
    >>> print(fenced(faded).splitlines()[1])
    def faded(colour: str, alpha: float) -> str:
    """
    # A Triton kernel wraps the function it was made of.
    bare = getattr(thing, "fn", thing)
    source = textwrap.dedent(inspect.getsource(bare)).rstrip()
    if not docstrings:
        source = re.sub(r'\n +"""(?:.|\n)*?"""(?=\n)', "", source, count=1)
    lines = source.splitlines()
    if after:
        lines = lines[next(i for i, line in enumerate(lines) if after in line) :]
    if before:
        lines = lines[: next(i for i, line in enumerate(lines) if before in line)]
    cut = textwrap.dedent("\n".join(lines))
    module = inspect.getmodule(bare)
    where = "" if module is None else module.__name__.replace(".", "/") + ".py"
    return f"```python\n{cut}\n```\n<small>from `{where}`</small>"
