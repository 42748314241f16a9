"""A folder of ours is whole or not there."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Example
from safetensors.torch import load_file

import flashsvd.checkpoints.imported as imported_module
from flashsvd.checkpoints.imported import write
from flashsvd.checkpoints.importing import import_checkpoint
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, InputError

Made = Callable[[str], Example]


def test_the_folder_says_what_it_is(example: Made, tmp_path: Path) -> None:
    imported = import_checkpoint(example("asvd").folder)
    write(imported, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    stored = config["quantization_config"]
    assert (stored["quant_method"], stored["method"], stored["engine"]) == ("flashsvd", "asvd", "lowrank")
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float64"
    assert "truncation_ranks" not in config
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == imported.state_dict().keys()
    assert load_compressed(tmp_path / "ours").config.quantization_config.method == "asvd"


def test_the_tokenizer_comes_along_and_nothing_else(example: Made, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in example("palu").folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.json", "vocab.json", "generation_config.json", "modeling_evil.py", "README.md"):
        (source / name).write_text("{}")
    write(import_checkpoint(source), tmp_path / "ours")
    names = {file.name for file in (tmp_path / "ours").iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "vocab.json", "generation_config.json"}
    assert names == expected


def test_large_checkpoints_are_written_in_shards(
    example: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported_module, "_SHARD_BYTES", 30_000)
    imported = import_checkpoint(example("basis_sharing").folder)
    write(imported, tmp_path / "ours")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        logits = load_compressed(tmp_path / "ours")(ids).logits
        torch.testing.assert_close(logits, example("basis_sharing").model(ids).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("moment", ["tensors", "config"])
def test_a_full_disk_leaves_nothing_of_a_checkpoint(
    example: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = "safetensors.torch.save_file" if moment == "tensors" else "shutil.copyfile"
    source = tmp_path / "source"
    source.mkdir()
    for file in example("svd_llm").folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    imported = import_checkpoint(source)
    monkeypatch.setattr(place, full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing of it was kept") as error:
        write(imported, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_model_that_is_there_stays_unless_forced(
    example: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(import_checkpoint(example("svd_llm").folder), tmp_path / "ours")
    other = import_checkpoint(example("palu").folder)
    with pytest.raises(InputError, match="holds a model already"):
        write(other, tmp_path / "ours")
    with monkeypatch.context() as patched:
        patched.setattr(
            "safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full"))
        )
        with pytest.raises(CheckpointError, match="full; nothing of it was kept"):
            write(other, tmp_path / "ours", force=True)
    assert load_compressed(tmp_path / "ours").config.quantization_config.method == "svd_llm"
    write(other, tmp_path / "ours", force=True)
    assert load_compressed(tmp_path / "ours").config.quantization_config.method == "palu"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("x")
    with pytest.raises(InputError, match="is no model"):
        write(other, tmp_path / "photos", force=True)
