"""A model compressed block by block is the model compressed in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flashsvd.compression import large as module
from flashsvd.compression.large import compress_large
from flashsvd.engines.build import build
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import Cancelled, CheckpointError, InputError, PlanError
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute, weight_of
from flashsvd.stats.collect import collect

Text = list[dict[str, torch.Tensor]]
StatsModel = Callable[..., LoadedModel]
MIXED = "*.q: 4 L1.v.h2: 3 L2.v: 5 *.o: 11 L1.up: 12 *.down: 9 L3.k: 2"


def _in_memory(loaded: LoadedModel, plan: RankPlan, method: str, text: Text, cache: Path) -> torch.nn.Module:
    made = method_named(method)
    statistics = collect(loaded, text, made.needs, cache=cache) if made.needs else None
    factors = factorise(loaded, compute(loaded, made, statistics, cache=cache), plan)
    return build(loaded, "lowrank", factors, plan, method=made.spec)


def _assert_equal(mine: torch.nn.Module, other: torch.nn.Module) -> None:
    state, wanted = mine.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("method", ["svd", "whiten", "whiten:centred", "asvd"])
@pytest.mark.parametrize("per_head", [True, False])
def test_the_checkpoint_is_the_model_made_in_memory(
    loaded: LoadedModel, text: Text, tmp_path: Path, method: str, per_head: bool
) -> None:
    shape = loaded.shape.with_per_head(per_head)
    plan = RankPlan.from_text(shape, MIXED if per_head else MIXED.replace(".h2", ""))
    whole = load(loaded.name, dtype=torch.float32, per_head=per_head)
    wanted = _in_memory(whole, plan, method, text, tmp_path / "cache")
    # Of the folder, and of a loaded model.
    for number, source in enumerate((Path(loaded.name), whole)):
        out = tmp_path / f"out-{number}"
        assert compress_large(source, plan, method_named(method), iter(text), out) == out
        again = load_compressed(out)
        assert type(again) is type(loaded.model)
        _assert_equal(again, wanted)
        with torch.no_grad():
            assert torch.equal(again(**text[0]).logits, wanted(**text[0]).logits)
        config = again.config.quantization_config
        assert (config.method, config.engine) == (method_named(method).spec, "lowrank")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out-0", "out-1"]


def test_shards_are_blocks_and_hold_no_dense_weight(
    stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    loaded = stats_model("bert")
    plan = RankPlan.from_text(loaded.shape, "*.down: 9")
    out = compress_large(loaded, plan, method_named("whiten"), text, tmp_path / "out")
    shards = sorted(out.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    for layer, shard in enumerate(shards[:3]):
        with safe_open(shard, "pt") as file:
            names = set(file.keys())
        assert all(name.startswith(f"bert.encoder.layer.{layer}.") for name in names)
        assert f"bert.encoder.layer.{layer}.output.dense.U" in names
        assert f"bert.encoder.layer.{layer}.output.dense.weight" not in names


def test_a_loaded_model_is_left_as_it_is(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("llama")
    before = {
        name: (tensor, tensor.clone()) for name, tensor in loaded.model.state_dict(keep_vars=True).items()
    }
    compress_large(
        loaded, RankPlan.from_text(loaded.shape, MIXED), method_named("whiten"), text, tmp_path / "out"
    )
    after = loaded.model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (tensor, values) in before.items():
        assert after[name] is tensor and torch.equal(tensor, values)
    assert not hasattr(loaded.model.config, "quantization_config")


def test_the_folders_dtype_is_kept(
    stats_folder: Callable[..., Path], stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    stats_model("llama", torch.bfloat16).model.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "calibration.parquet").write_text("kept")
    (tmp_path / "half" / "notes.md").write_text("not kept")
    plan = RankPlan.from_text(stats_model("llama").shape, MIXED)
    out = compress_large(tmp_path / "half", plan, method_named("whiten"), text, tmp_path / "out")
    assert load_compressed(out).dtype == torch.bfloat16
    assert (out / "calibration.parquet").read_text() == "kept"
    assert (out / "generation_config.json").is_file() and not (out / "notes.md").exists()


def test_tied_weights_are_kept_once(
    stats_folder: Callable[..., Path], stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(stats_folder("llama"), tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    loaded = load(str(tmp_path / "tied"))
    plan = RankPlan.from_text(loaded.shape, MIXED)
    for number, source in enumerate((tmp_path / "tied", loaded)):
        out = compress_large(source, plan, method_named("svd"), [], tmp_path / f"out-{number}")
        with safe_open(sorted(out.glob("*.safetensors"))[-1], "pt") as file:
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        again = load_compressed(out)
        assert again.lm_head.weight is again.model.embed_tokens.weight
        _assert_equal(again, _in_memory(loaded, plan, "svd", [], tmp_path / "cache"))


def test_an_existing_folder_is_refused_and_an_empty_one_is_filled(
    stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    loaded = stats_model("bert")
    plan = RankPlan.from_text(loaded.shape, MIXED)
    out = tmp_path / "out"
    out.mkdir()
    compress_large(loaded, plan, method_named("svd"), [], out)
    kept = sorted(path.name for path in out.iterdir())
    with pytest.raises(InputError, match="holds a model already"):
        compress_large(loaded, plan, method_named("svd"), [], out)
    assert sorted(path.name for path in out.iterdir()) == kept


def test_a_full_disk_leaves_nothing(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = module.save_file, []

    def full(*args: object) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(module, "save_file", full)
    loaded = stats_model("bert")
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.* nothing of it was kept"):
        compress_large(
            loaded, RankPlan.from_text(loaded.shape, MIXED), method_named("whiten"), text, tmp_path / "out"
        )
    assert not list(tmp_path.iterdir())


def test_cancelled_leaves_nothing(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    shares: list[float] = []

    def stop(stage: str, share: float) -> None:
        shares.append(share)
        if stage.startswith("Layer 2"):
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        compress_large(
            loaded,
            RankPlan.from_text(loaded.shape, MIXED),
            method_named("whiten"),
            text,
            tmp_path / "out",
            progress=stop,
        )
    assert not list(tmp_path.iterdir())
    assert shares


def test_what_cannot_be_done_layer_by_layer(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    plan = RankPlan.from_text(loaded.shape, MIXED)
    with pytest.raises(InputError, match="gradients of the whole model"):
        compress_large(loaded, plan, method_named("fwsvd"), text, tmp_path / "out")
    sharing = method_named("basis_sharing")
    shared = RankPlan.dense(sharing.shape(loaded.shape))
    with pytest.raises(InputError, match="several layers at once"):
        compress_large(loaded, shared, sharing, text, tmp_path / "out")
    other = stats_model("modernbert")
    with pytest.raises(PlanError, match="another model"):
        compress_large(other, plan, method_named("svd"), text, tmp_path / "out")
    with pytest.raises(InputError, match="no batches"):
        compress_large(loaded, plan, method_named("whiten"), [], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nan_weights_are_named(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    weight_of(loaded, 2, loaded.shape.slot(2, "down"))[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"L3\.down holds NaN"):
        compress_large(
            loaded, RankPlan.from_text(loaded.shape, MIXED), method_named("whiten"), text, tmp_path / "out"
        )
    assert not list(tmp_path.iterdir())
