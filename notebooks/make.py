"""`python notebooks/make.py [01 03 ...]`: runs the lessons' sources and writes the notebooks beside them.

The `.py` files are what is edited. A notebook keeps its outputs, so that it reads well without being run: widgets by
the HTML that stands for them, and each figure with a picture for readers that draw no plotly, made by the system's
Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE_WIDTH = 760
COLOURS = 64
LARGEST_BYTES = 1_000_000
SECONDS_PER_CELL = 120


@dataclass(frozen=True)
class Executed:
    """A notebook with its outputs, and how long each of its cells took, in seconds, in the order of its cells."""

    notebook: NotebookNode
    seconds: tuple[float, ...]


def sources() -> list[Path]:
    """The lessons, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(source: Path) -> NotebookNode:
    """A lesson as a notebook without outputs, its cells numbered so that the same source gives the same file."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def execute(notebook: NotebookNode) -> Executed:
    """Runs every cell in a kernel of this Python. Raises CellExecutionError where one fails."""
    seconds = [0.0] * len(notebook.cells)
    began = {}

    def starts(cell: NotebookNode, cell_index: int) -> None:
        began[cell_index] = time.monotonic()

    def ends(cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        seconds[cell_index] = time.monotonic() - began[cell_index]

    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        resources={"metadata": {"path": str(HERE)}},
        store_widget_state=False,
        on_cell_execute=starts,
        on_cell_executed=ends,
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _readable(cell.outputs)
    return Executed(notebook, tuple(seconds))


def _readable(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Without widgets that nothing stands behind any more, and with what was printed in one piece."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if (
            output.output_type in ("display_data", "execute_result")
            and WIDGET in output.data
        ):
            output.data = NotebookNode(
                {"text/html": output.data["text/html"], "text/plain": "a widget"}
            )
        alike = (
            kept
            and output.output_type == "stream" == kept[-1].output_type
            and output.name == kept[-1].name
        )
        if alike:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


@contextmanager
def drawing() -> Iterator[Any]:
    """A page of Chromium that plotly is loaded in."""
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    chromium = next(
        filter(
            None,
            map(
                shutil.which,
                ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
            ),
        ),
        None,
    )
    if chromium is None:
        sys.exit(
            "no Chromium on this machine to draw the figures with: install the system's chromium package"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.add_script_tag(content=get_plotlyjs())
        yield page
        browser.close()


def add_pictures(notebook: NotebookNode, page: Any) -> None:
    """Puts beside every figure the picture of it that a page which draws no plotly shows."""
    from PIL import Image

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY)
            if figure is None:
                continue
            url = page.evaluate(
                """async ([data, layout, width]) => await Plotly.toImage(
                    {data, layout}, {format: "png", width, height: layout.height, scale: 1})""",
                [figure["data"], figure["layout"], PICTURE_WIDTH],
            )
            drawn = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert(
                "RGB"
            )
            file = io.BytesIO()
            drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(
                file, "PNG", optimize=True
            )
            output.data["image/png"] = base64.b64encode(file.getvalue()).decode() + "\n"


def write(notebook: NotebookNode, source: Path) -> int:
    """Writes the notebook beside its source, and gives its size in bytes."""
    path = source.with_suffix(".ipynb")
    nbformat.write(notebook, path)
    # Of the two, jupytext takes the one that was written last for the source.
    source.touch()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run the lessons and write their notebooks."
    )
    parser.add_argument("numbers", nargs="*", help="which, such as 01 03; all by default")
    asked = parser.parse_args().numbers
    chosen = [
        source
        for source in sources()
        if not asked or re.match(r"\d+", source.name)[0] in asked
    ]  # type: ignore[index]
    if not chosen:
        parser.error(
            f"no such lesson: expected numbers from {', '.join(s.name[:2] for s in sources())}"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    with drawing() as page:
        for source in chosen:
            try:
                done = execute(read(source))
            except CellExecutionError as error:
                sys.exit(f"{source.name}: {error}")
            add_pictures(done.notebook, page)
            size = write(done.notebook, source)
            print(
                f"{source.stem:24} {sum(done.seconds):5.1f} s, slowest cell {max(done.seconds):4.1f} s, "
                f"{size / 1000:.0f} kB" + (": too large" if size > LARGEST_BYTES else "")
            )


if __name__ == "__main__":
    main()
