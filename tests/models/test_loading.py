from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashsvd.errors import CheckpointError, DeviceError, InputError, ModelError
from flashsvd.models.load import load, pick_device, pick_dtype
from flashsvd.models.sources import catalogue, resolve


def test_presets_have_the_published_sizes() -> None:
    loaded = load("bert-base")
    assert loaded.parameters == pytest.approx(109.5e6, rel=0.01)
    assert (len(loaded.shape.layers), loaded.shape.heads, loaded.shape.head_dim) == (12, 12, 64)
    assert not loaded.trained and loaded.evaluation is None
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_preset_weights_are_the_same_every_time_and_leave_the_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (load("electra-small").model.electra.encoder.layer[0].output.dense.weight for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.rand(3), expected)


def test_the_catalogue_needs_no_download() -> None:
    kinds = {source.kind for source in catalogue()}
    assert kinds <= {"bundled", "preset"}
    assert resolve("bert-large").kind == "preset"
    assert resolve("someone/some-model").kind == "hub"


@pytest.mark.parametrize("name", ["../nowhere", "/no/such/folder", "a b", "", "x/y/z", "~nobody/x"])
def test_a_name_that_is_nothing_lists_what_there_is(name: str) -> None:
    with pytest.raises(ModelError, match="bert-base"):
        load(name)


def test_a_hub_id_without_network_is_one_line() -> None:
    with pytest.raises(ModelError, match="hub cannot be reached") as error:
        load("someone/some-model")
    assert "\n" not in str(error.value)


def test_other_architectures_name_the_file_to_add(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match=r"families/t5\.py"):
        load(str(tmp_path))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a model configuration"):
        load(str(tmp_path))


def _copy(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("cut", [0, 4, 200, -1000])
def test_truncated_weights_are_one_line(tiny_folder: Path, tmp_path: Path, cut: int) -> None:
    folder = _copy(tiny_folder, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="truncated or corrupt") as error:
        load(str(folder))
    assert "\n" not in str(error.value)


def test_a_pickle_is_not_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_folder, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        load(str(folder))


def test_a_missing_or_misshaped_weight_fails(tiny_folder: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    without = {key: value for key, value in tensors.items() if key != name}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        load(str(folder))
    save_file({**without, name: torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit"):
        load(str(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


def test_unknown_words() -> None:
    for word in ("tpu", "cuda:x", "cudaa"):
        with pytest.raises(InputError, match="device must be"):
            pick_device(word)
    with pytest.raises(InputError, match="dtype must be"):
        pick_dtype("int8")
