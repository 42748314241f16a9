"""What is on screen as Python, as a shell command and as a notebook. No streamlit."""

from __future__ import annotations

import json
import shlex
from typing import Any

from app.state import Settings


def python(settings: Settings) -> str:
    """A program that repeats the live run of the settings.

    >>> print(python(Settings()).splitlines()[0])
    import flashsvd
    """
    choice = f"keep={settings.keep:g}" if settings.plan is None else f"text={_quoted(settings.plan)}"
    return "\n".join(
        (
            "import flashsvd",
            "",
            "request = flashsvd.CompareRequest(",
            f"    model={_quoted(settings.model)},",
            f"    choice=flashsvd.PlanChoice({choice}),",
            f"    method={_quoted(settings.method)},",
            f"    per_head={settings.per_head},",
            f"    batch={settings.batch},",
            f"    seq={settings.seq},",
            f"    dtype={json.dumps(settings.dtype)},",
            ")",
            "result = flashsvd.compare(request)",
            "for run in result.runs:",
            '    print(f"{run.engine:8} {run.latency_ms.p50:8.1f} ms {run.peak_activation_bytes / 2**20:8.1f} MiB")',
        )
    )


def _quoted(text: str) -> str:
    # A string of JSON is one of Python, but for the pairs that JSON escapes what is above U+FFFF by.
    return json.dumps(text, ensure_ascii=False)


def command(settings: Settings) -> str:
    """The same as one line of shell.

    >>> command(Settings())
    'python -m flashsvd compare stdlib-bert --keep 0.5 --method svd --batch 8 --seq 256 --dtype fp32'
    """
    plan = ["--keep", f"{settings.keep:g}"] if settings.plan is None else ["--rules", settings.plan]
    words = ["python", "-m", "flashsvd", "compare", settings.model, *plan, "--method", settings.method]
    words += ["--batch", str(settings.batch), "--seq", str(settings.seq), "--dtype", settings.dtype]
    return shlex.join(words if settings.per_head else [*words, "--whole"])


_PICTURE = """from flashsvd.figures.timeline import timeline

timeline(result.run("flash"), len(result.model.shape.layers), ghost=result.run("dense"))"""


def notebook(settings: Settings) -> str:
    """A notebook of two cells: the run, and memory while it runs."""
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{number}",
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate((python(settings), _PICTURE))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    data = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(data, indent=1)
