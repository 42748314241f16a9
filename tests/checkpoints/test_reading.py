"""Nothing in a file is executed, and whatever is wrong with it is one line."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Example
from safetensors.torch import load_file, save_file

from flashsvd.checkpoints.importing import import_checkpoint
from flashsvd.checkpoints.reading import read
from flashsvd.errors import CheckpointError

Made = Callable[[str], Example]


def _pickled(example: Example, folder: Path, content: Any = None, name: str = "pytorch_model.bin") -> Path:
    """An example's tensors as a pickle, beside its config.json."""
    folder.mkdir()
    (folder / "config.json").write_bytes((example.folder / "config.json").read_bytes())
    torch.save(load_file(example.folder / "model.safetensors") if content is None else content, folder / name)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_needs_leave(example: Made, tmp_path: Path, name: str) -> None:
    folder = _pickled(example("svd_llm"), tmp_path / "pickled", name=name)
    for path in (folder, folder / name):
        with pytest.raises(
            CheckpointError, match=r"is a pickle, which can run code.*pass --allow-pickle"
        ) as error:
            import_checkpoint(path)
        assert "\n" not in str(error.value)
        imported = import_checkpoint(path, allow_pickle=True)
        plain = import_checkpoint(example("svd_llm").folder)
        assert all(torch.equal(imported.factors[key].u, plain.factors[key].u) for key in plain.factors)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_a_state_dict_in_a_dict_is_found(example: Made, tmp_path: Path, wrapper: str) -> None:
    state = load_file(example("asvd").folder / "model.safetensors")
    folder = _pickled(example("asvd"), tmp_path / "pickled", {wrapper: state, "epoch": 3})
    assert import_checkpoint(folder, allow_pickle=True).method == "asvd"


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_not_executed(example: Made, tmp_path: Path, legacy: bool) -> None:
    state = load_file(example("svd_llm").folder / "model.safetensors")
    folder = _pickled(example("svd_llm"), tmp_path / "evil", {**state, "x": Malicious(tmp_path / "owned")})
    if legacy:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Malicious(tmp_path / "owned")}))
    for allow in (False, True):
        with pytest.raises(CheckpointError) as error:
            import_checkpoint(folder, allow_pickle=allow)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()
    # That it would have run is what makes this a test.
    torch.load(folder / "pytorch_model.bin", weights_only=False) if not legacy else pickle.loads(
        (folder / "pytorch_model.bin").read_bytes()
    )
    assert (tmp_path / "owned").is_dir()


def test_a_whole_module_is_to_be_saved_as_a_state_dict(example: Made, tmp_path: Path) -> None:
    content = {"model": torch.nn.Linear(2, 2), "tokenizer": None}
    folder = _pickled(example("svd_llm"), tmp_path / "module", content)
    with pytest.raises(
        CheckpointError, match=r"more than tensors, such as a whole module.*state_dict\(\)"
    ) as error:
        import_checkpoint(folder, allow_pickle=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds a list: expected"), ({}, "holds nothing"), ({"a": 1}, "holds 'a', a int")],
)
def test_a_pickle_of_something_else(example: Made, tmp_path: Path, content: Any, message: str) -> None:
    folder = _pickled(example("svd_llm"), tmp_path / "other", content)
    with pytest.raises(CheckpointError, match=message):
        read(folder, allow_pickle=True)


@pytest.mark.parametrize("cut", [0, 30, -200])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_checkpoint_is_one_line(example: Made, tmp_path: Path, name: str, cut: int) -> None:
    if name.endswith("bin"):
        folder = _pickled(example("svd_llm"), tmp_path / "cut")
    else:
        folder = tmp_path / "cut"
        folder.mkdir()
        (folder / name).write_bytes((example("svd_llm").folder / name).read_bytes())
    (folder / name).write_bytes((folder / name).read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"truncated or corrupt|more than tensors") as error:
        read(folder, allow_pickle=True)
    assert "\n" not in str(error.value)


# Shards


@pytest.fixture
def shards(example: Made, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "config.json").write_bytes((example("svd_llm").folder / "config.json").read_bytes())
    tensors = load_file(example("svd_llm").folder / "model.safetensors")
    where = {}
    for part in range(2):
        name = f"model-0000{part + 1}-of-00002.safetensors"
        mine = {key: tensors[key] for key in sorted(tensors)[part::2]}
        save_file(mine, folder / name)
        where.update(dict.fromkeys(mine, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_shards_are_one_checkpoint(example: Made, shards: Path) -> None:
    assert read(shards).tensors.keys() == read(example("svd_llm").folder).tensors.keys()
    assert import_checkpoint(shards).method == "svd_llm"


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 shards, first model-00002-of-00002"):
        read(shards)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": "../model.safetensors"}}', "{}"])
def test_a_bad_index_is_one_line(shards: Path, index: str) -> None:
    (shards / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"no index of shards|no file beside it"):
        read(shards)


def test_a_tensor_in_two_files_is_refused(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    first = shards / "model-00001-of-00002.safetensors"
    (shards / "again.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="which another file of"):
        read(shards)


def test_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        read(tmp_path / "notes.txt")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="not a model configuration"):
            read(tmp_path)


def test_tensors_of_another_kind_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a is no plain tensor"):
        read(tmp_path, allow_pickle=True)
