"""Statistics against plain references in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.errors import Cancelled, InputError, NonFiniteError
from flashsvd.kernels.gate import relative_error
from flashsvd.models.linears import LINEARS, linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.spectra import weight_of
from flashsvd.stats import accumulate
from flashsvd.stats import cache as disk
from flashsvd.stats.base import NEEDS
from flashsvd.stats.collect import collect, warnings_for
from tests.small_models import worst

Text = list[dict[str, torch.Tensor]]
StatsModel = Callable[..., LoadedModel]
CLOSE = 1e-10


def _unpadded_inputs(loaded: LoadedModel, text: Text) -> dict[tuple[int, str], torch.Tensor]:
    """The inputs [tokens, n] of every slot, with every sequence run alone and without padding."""
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}
    handles = []
    for layer, slot in loaded.shape:
        path = loaded.family.path(layer, slot.name)
        owner = loaded.model.base_model.get_submodule(path.rpartition(".")[0])
        module = owner if isinstance(owner, LINEARS) else loaded.model.base_model.get_submodule(path)
        rows = seen.setdefault((layer, slot.name), [])
        handles.append(module.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0][0])))
    with torch.no_grad():
        for batch in text:
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            for row, kept in zip(batch["input_ids"], mask.bool(), strict=True):
                first = int(kept.nonzero()[0])
                positions = torch.arange(first, first + int(kept.sum()))[None]
                loaded.model.base_model(input_ids=row[kept][None], position_ids=positions)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(rows) for key, rows in seen.items()}


def test_sums_are_exact_and_padding_is_not_in_them(loaded: LoadedModel, text: Text, tmp_path: Path) -> None:
    found = collect(loaded, text, ["gram", "mean", "mean_abs"], cache=tmp_path)
    assert (found.tokens, found.sequences) == (9 + 9 + 9 + 13 + 51, 7)
    for key, x in _unpadded_inputs(loaded, text).items():
        stats = found.by_slot[key]
        assert stats.tokens == len(x) == found.tokens
        assert stats.gram is not None and stats.mean is not None and stats.mean_abs is not None
        assert stats.gram.dtype == stats.mean.dtype == torch.float64
        assert relative_error(stats.gram, x.T @ x) < CLOSE
        assert relative_error(stats.mean, x.mean(0)) < CLOSE
        assert relative_error(stats.mean_abs, x.abs().mean(0)) < CLOSE
        assert stats.fisher is None


def test_a_mask_ignored_is_caught(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    right = collect(loaded, text, ["gram"], cache=tmp_path / "right")
    monkeypatch.setattr(accumulate, "tokens_of", lambda x, mask, count: x.flatten(0, -2))
    assert worst(collect(loaded, text, ["gram"], cache=tmp_path / "wrong"), right) > 1e-3


@settings(max_examples=8)
@given(size=st.integers(1, 5), seed=st.integers(0, 99), extra=st.integers(0, 6), left=st.booleans())
def test_batching_order_and_padding_change_nothing(
    stats_model: StatsModel,
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    seed: int,
    extra: int,
    left: bool,
) -> None:
    loaded = stats_model("bert")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (6, 9), generator=generator)
    cache = tmp_path_factory.mktemp("cache")
    whole = collect(loaded, [{"input_ids": ids}], NEEDS, cache=cache)

    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    pad, ones = torch.zeros(6, extra, dtype=torch.long), torch.ones_like(ids)
    # Absolute positions count from the left, whatever is there.
    positions = torch.arange(9 + extra).expand(6, -1) - (extra if left else 0)
    padded = {
        "input_ids": torch.cat([pad, ids] if left else [ids, pad], 1)[order],
        "attention_mask": torch.cat([pad, ones] if left else [ones, pad], 1)[order],
        "position_ids": positions.clamp_min(0),
    }
    # BERT takes the class from the first place: padding there is another input to the head.
    needs = ["gram", "mean", "mean_abs"] if left and extra else NEEDS
    parts = (
        {name: tensor[start : start + size] for name, tensor in padded.items()} for start in range(0, 6, size)
    )
    assert worst(collect(loaded, parts, needs, cache=cache), whole) < CLOSE


def test_shared_inputs_are_one_tensor(loaded: LoadedModel, text: Text, tmp_path: Path) -> None:
    for _ in range(2):  # collected, then read from the cache
        by_slot = collect(loaded, text, ["gram", "mean"], cache=tmp_path).by_slot
        assert by_slot[0, "q"].gram is by_slot[0, "k"].gram is by_slot[0, "v"].gram
        assert by_slot[1, "q"].mean is by_slot[1, "v"].mean
        assert by_slot[0, "q"].gram is not by_slot[0, "o"].gram
        if (0, "gate") in by_slot:
            assert by_slot[0, "gate"].gram is by_slot[0, "up"].gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_full(
    stats_model: StatsModel, text: Text, tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = stats_model("bert", dtype)
    seen: list[torch.Tensor] = []
    linear = linear_of(loaded.model.base_model, loaded.family, loaded.shape, 2, "down")
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = collect(loaded, text, ["gram", "mean"], cache=tmp_path).by_slot[2, "down"]
    handle.remove()
    kept = [seen[0][text[0]["attention_mask"].bool()], seen[1].flatten(0, 1)]
    x = torch.cat(kept).double()
    assert found.gram is not None and found.mean is not None
    assert relative_error(found.gram, x.T @ x) < 1e-6
    assert relative_error(found.mean, x.mean(0)) < 1e-12


# Fisher


def _state(loaded: LoadedModel) -> object:
    hooks = [
        (
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            module.training,
            "forward" in module.__dict__,
        )
        for module in loaded.model.modules()
    ]
    return hooks, [(p.requires_grad, p.grad) for p in loaded.model.parameters()]


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_model_is_left_as_it_was_also_when_stopped(
    loaded: LoadedModel, text: Text, tmp_path: Path, low_memory: bool
) -> None:
    loaded.model.get_submodule(next(iter(dict(loaded.model.named_children())))).train()
    loaded.model.base_model.get_input_embeddings().weight.requires_grad_(True)
    before = _state(loaded)
    needs = ["gram"] if low_memory else NEEDS
    calls: list[float] = []

    def stop(stage: str, share: float) -> None:
        calls.append(share)
        if share > 0:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        collect(loaded, text, needs, cache=tmp_path, low_memory=low_memory, progress=stop)
    assert _state(loaded) == before
    assert not list(tmp_path.glob("*"))
    collect(loaded, text, needs, cache=tmp_path, low_memory=low_memory)
    assert _state(loaded) == before


def test_dropout_is_off_while_collecting(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    still = collect(loaded, text, ["gram"], cache=tmp_path / "eval")
    loaded.model.train()
    assert worst(collect(loaded, text, ["gram"], cache=tmp_path / "train"), still) == 0
    assert loaded.model.training


@pytest.mark.parametrize("low_memory", [False, True])
def test_nan_weights_are_named_by_the_next_layer(
    loaded: LoadedModel, text: Text, tmp_path: Path, low_memory: bool
) -> None:
    weight_of(loaded, 0, loaded.shape.slot(0, "down"))[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^the inputs of L2\.q are not finite.* in batch 1: .*$"):
        collect(loaded, text, ["gram"], cache=tmp_path, low_memory=low_memory)


def test_a_loss_that_is_not_finite_is_named(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    loaded.model.classifier.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="loss of sequence 1 in batch 1 is not finite"):
        collect(loaded, text, ["fisher"], cache=tmp_path)


IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([], "no tokens"),
        ([{"input_ids": IDS, "attention_mask": torch.zeros(2, 3)}], "no tokens"),
        ([{"attention_mask": IDS}], "batch 1 needs input_ids"),
        ([{"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)}], r"attention_mask of shape \[2, 3\]"),
        ([{"input_ids": IDS, "labels": torch.zeros(3, dtype=torch.long)}], r"labels must have shape \[2\]"),
    ],
)
def test_batches_that_cannot_be_used(stats_model: StatsModel, tmp_path: Path, text: Text, words: str) -> None:
    with pytest.raises(InputError, match=words):
        collect(stats_model("bert"), text, ["fisher"], cache=tmp_path)


def test_needs_that_cannot_be_met(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    with pytest.raises(InputError, match="needs must be some of gram, mean"):
        collect(loaded, text, ["variance"], cache=tmp_path)  # type: ignore[list-item]
    with pytest.raises(InputError, match="needs must be some of"):
        collect(loaded, text, [], cache=tmp_path)
    with pytest.raises(InputError, match="low_memory"):
        collect(loaded, text, ["fisher"], cache=tmp_path, low_memory=True)


def test_padding_alone_in_a_sequence_counts_for_nothing(
    stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    loaded = stats_model("bert")
    empty = {"input_ids": text[1]["input_ids"].repeat(2, 1), "attention_mask": torch.ones(6, 17)}
    empty["attention_mask"][3:] = 0
    mine = collect(loaded, [empty], NEEDS, cache=tmp_path)
    other = collect(loaded, text[1:], NEEDS, cache=tmp_path)
    assert mine.sequences == other.sequences == 3
    assert worst(mine, other) < CLOSE


def test_too_few_tokens_are_told_in_one_line(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    few = collect(loaded, [{"input_ids": text[1]["input_ids"][:2]}], ["gram"], cache=tmp_path)
    (line,) = warnings_for(few)
    assert line.startswith("34 calibration tokens for inputs of width 48 (L1.down and 2 more): ")
    assert line.endswith("give at least 48 tokens")
    assert warnings_for(collect(loaded, text, ["gram"], cache=tmp_path)) == []
    assert (
        warnings_for(collect(loaded, [{"input_ids": text[1]["input_ids"][:2]}], ["mean"], cache=tmp_path))
        == []
    )


# The cache


def _count_runs(loaded: LoadedModel) -> list[int]:
    runs: list[int] = []
    loaded.model.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_what_is_on_disk_is_not_collected_again(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    runs = _count_runs(loaded)
    first = collect(loaded, text, ["gram", "mean"], cache=tmp_path)
    assert len(runs) == 2
    again = collect(stats_model("bert"), (batch for batch in text), ["mean", "gram"], cache=tmp_path)
    assert len(runs) == 2 and again.digest == first.digest and worst(again, first) == 0
    less = collect(loaded, text, ["mean"], cache=tmp_path)
    assert len(runs) == 2 and less.by_slot[0, "q"].gram is None and less.digest != first.digest
    collect(loaded, text, ["gram", "mean_abs"], cache=tmp_path)
    collect(loaded, text[:1], ["gram"], cache=tmp_path)
    loaded.model.base_model.get_input_embeddings().weight[5, 0] += 1
    changed = collect(loaded, text, ["gram", "mean"], cache=tmp_path)
    assert len(runs) == 2 + 2 + 1 + 2 and changed.digest != first.digest


@pytest.mark.parametrize("size", [50, -8])
def test_a_file_cut_off_is_collected_again(
    stats_model: StatsModel, text: Text, tmp_path: Path, size: int
) -> None:
    loaded = stats_model("bert")
    first = collect(loaded, text, ["gram"], cache=tmp_path)
    runs = _count_runs(loaded)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:size])
    assert worst(collect(loaded, text, ["gram"], cache=tmp_path), first) == 0
    assert len(runs) == 2
    collect(loaded, text, ["gram"], cache=tmp_path)
    assert len(runs) == 2


def test_a_full_disk_costs_only_the_cache(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    save, calls = disk.save_file, []

    def full(*args: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(disk, "save_file", full)
    assert len(collect(loaded, text, ["gram"], cache=tmp_path).by_slot) == 18
    assert not list(tmp_path.iterdir())
    # Layer by layer there is nowhere else to keep them.
    with pytest.raises(InputError, match=r"L1 .* cannot be written .*No space left"):
        collect(loaded, text, ["gram"], cache=tmp_path, low_memory=True)
    assert not list(tmp_path.iterdir())


def test_the_cache_is_trimmed_to_its_limit(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    collect(loaded, text, ["gram"], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(disk, "_LIMIT_BYTES", 1)
    kept = collect(loaded, text, ["gram", "mean"], cache=tmp_path)
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == {kept.digest}
