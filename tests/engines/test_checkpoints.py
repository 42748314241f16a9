"""Compressed checkpoints: saved, read back without the dense weights, and refused when damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.engines.build import build
from flashsvd.engines.modules import HeadLowRankLinear, projection
from flashsvd.errors import CheckpointError, ModelError
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.spectra import compute

IDS = torch.arange(30).reshape(2, 15)


@pytest.fixture(scope="module")
def models(tiny: LoadedModel) -> dict[str, transformers.PreTrainedModel]:
    plan = uniform(tiny.shape, 0.5)
    factors = factorise(tiny, compute(tiny, method_named("svd")), plan)
    return {name: build(tiny, name, factors, plan) for name in ("lowrank", "flash")}


@pytest.fixture
def folder(models: dict[str, transformers.PreTrainedModel], tmp_path: Path) -> Path:
    models["flash"].save_pretrained(tmp_path / "compressed")
    return tmp_path / "compressed"


@pytest.mark.parametrize("engine", ["lowrank", "flash"])
def test_what_is_saved_is_what_is_read(
    models: dict[str, transformers.PreTrainedModel], engine: str, tmp_path: Path
) -> None:
    models[engine].save_pretrained(tmp_path)
    again = flashsvd.load_compressed(tmp_path)
    assert torch.equal(again(IDS).logits, models[engine](IDS).logits)
    assert again.config.quantization_config.engine == engine
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(flashsvd.load_compressed(tmp_path / "twice")(IDS).logits, again(IDS).logits)


def test_either_engine_reads_the_other_ones_checkpoint(
    models: dict[str, transformers.PreTrainedModel], folder: Path
) -> None:
    lowrank = flashsvd.load_compressed(folder, engine="lowrank")
    assert torch.equal(lowrank(IDS).logits, models["lowrank"](IDS).logits)


def test_the_dense_weights_are_not_in_the_file(folder: Path, tiny_folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert "bert.encoder.layer.0.intermediate.dense.U" in names
    assert "bert.encoder.layer.0.intermediate.dense.weight" not in names
    size, dense = (path.joinpath("model.safetensors").stat().st_size for path in (folder, tiny_folder))
    assert size < 0.7 * dense


def test_auto_classes_and_pipelines_open_it(
    models: dict[str, transformers.PreTrainedModel], folder: Path, tmp_path: Path
) -> None:
    flashsvd.register()
    auto = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(auto(IDS).logits, models["flash"](IDS).logits)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    answers = [
        transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")(
            ["a b c", "d"], padding=True
        )
        for model in (auto, models["lowrank"])
    ]
    assert [row["label"] for row in answers[0]] == [row["label"] for row in answers[1]]
    assert [row["score"] for row in answers[0]] == pytest.approx(
        [row["score"] for row in answers[1]], rel=1e-5
    )


def test_the_kernels_find_every_head_after_loading(folder: Path) -> None:
    """The tables of where heads begin are not in the file, and only the GPU kernels read them."""
    for module in flashsvd.load_compressed(folder).modules():
        if isinstance(module, HeadLowRankLinear):
            found = projection(module, torch.zeros(1, 2, 64)).table
            assert found is not None and torch.equal(found, module.layout.table())


def test_a_truncated_file_is_one_line(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        flashsvd.load_compressed(folder)


def test_a_missing_factor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.2.output.dense.V"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 weights, first bert\.encoder\.layer\.2\.output\.dense\.V"
    ):
        flashsvd.load_compressed(folder)


def test_a_plan_for_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another model"):
        flashsvd.load_compressed(folder)


def test_dense_and_compressed_folders_are_told_apart(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="already compressed"):
        load(str(folder))
    with pytest.raises(CheckpointError, match="not a compressed checkpoint"):
        flashsvd.load_compressed(tiny_folder)
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        flashsvd.load_compressed(tmp_path)
