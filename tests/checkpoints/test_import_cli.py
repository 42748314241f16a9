"""`import` and `export` as a person types them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from published import IDS, Example
from safetensors.torch import load_file
from typer.testing import CliRunner

from flashsvd.cli.export import export
from flashsvd.cli.import_ import import_
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, FlashSVDError, InputError
from flashsvd.models.load import load

Made = Callable[[str], Example]


def _run(*arguments: str) -> str:
    application = typer.Typer()
    application.command("import")(import_)
    application.command("export")(export)
    result = CliRunner().invoke(application, arguments)
    if isinstance(result.exception, FlashSVDError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_import_then_export(example: Made, tmp_path: Path) -> None:
    ours, dense, factors = (str(tmp_path / name) for name in ("ours", "dense", "factors"))
    text = _run("import", str(example("palu").folder), ours)
    assert text.startswith("Palu, Llama, 6 factored linears, keep 0.") and text.endswith(f"wrote {ours}\n")
    with torch.inference_mode():
        logits = load_compressed(ours)(IDS).logits
    torch.testing.assert_close(logits, example("palu").logits(), rtol=0, atol=1e-12)
    assert _run("export", ours, dense) == f"wrote {dense} (dense)\n"
    assert load(dense).shape.family == "llama"
    assert json.loads(_run("export", ours, factors, "--as", "factors", "--json")) == {
        "layout": "palu",
        "out": factors,
    }


def test_import_as_json_is_one_object(example: Made, tmp_path: Path) -> None:
    out = str(tmp_path / "ours")
    row = json.loads(_run("import", str(example("svd_llm").folder), out, "--json"))
    assert (row["layout"], row["family"], row["factored"], row["out"]) == ("svd_llm", "llama", 21, out)
    assert 0 < row["keep"] < 1


def test_pickles_and_folders_that_are_there_need_a_flag(example: Made, tmp_path: Path) -> None:
    source, out = tmp_path / "source", str(tmp_path / "ours")
    source.mkdir()
    (source / "config.json").write_bytes((example("dobi").folder / "config.json").read_bytes())
    torch.save(load_file(example("dobi").folder / "model.safetensors"), source / "model.pt")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        _run("import", str(source), out)
    _run("import", str(source), out, "--allow-pickle")
    with pytest.raises(InputError, match="--force"):
        _run("import", str(source), out, "--allow-pickle")
    _run("import", str(source), out, "--allow-pickle", "--force")
    with pytest.raises(InputError, match="form must be one of"):
        _run("export", out, str(tmp_path / "x"), "--as", "gguf")


def test_the_commands_load_no_torch_before_they_run() -> None:
    code = "import sys, flashsvd.cli.import_, flashsvd.cli.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([__import__("sys").executable, "-c", code], check=False).returncode == 0
