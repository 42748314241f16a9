"""`app`: opens the workbench in a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.errors import InputError


def app(port: Annotated[int, typer.Option(help="Port to serve on.")] = 8501) -> None:
    """Start the workbench; the same as `streamlit run app/main.py`."""
    script = Path(__file__).resolve().parent.parent.parent / "app" / "main.py"
    if not script.is_file():
        raise InputError(f"the app is not beside the library ({script} is missing): run it from a checkout")
    if not 1 <= port <= 65535:
        raise InputError(f"port must be from 1 to 65535, got {port}")
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    raise SystemExit(subprocess.call(command, cwd=script.parent.parent))
