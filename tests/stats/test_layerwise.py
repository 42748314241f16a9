"""One block at a time gives what the whole model gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flashsvd.errors import CheckpointError, FlashSVDError, InputError
from flashsvd.models.load import LoadedModel
from flashsvd.stats import layerwise
from flashsvd.stats.accumulate import padding_mask
from flashsvd.stats.collect import collect
from flashsvd.stats.layerwise import walk

Text = list[dict[str, torch.Tensor]]
StatsModel = Callable[..., LoadedModel]


class Seen:
    """Stands where taps do: keeps the masks that it is told of."""

    def __init__(self) -> None:
        self.masks: list[torch.Tensor] = []

    def begin(self, mask: torch.Tensor) -> None:
        self.masks.append(mask)

    def end(self, number: int) -> None:
        assert number == len(self.masks) - 1


def _hidden_states(loaded: LoadedModel, text: Text) -> list[list[torch.Tensor]]:
    """The output of every block, by layer and batch, of the model as a whole."""
    kept: list[list[torch.Tensor]] = []
    handles = []
    for block in loaded.family.layers(loaded.model.base_model):
        found: list[torch.Tensor] = []
        kept.append(found)
        handles.append(block.register_forward_hook(lambda _, __, out, found=found: found.append(out)))
    with torch.no_grad():
        for batch in text:
            loaded.model.base_model(**batch)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blocks_one_by_one_are_the_model(
    loaded: LoadedModel, text: Text, tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded.model.to(dtype)
    wanted = _hidden_states(loaded, text)
    for layer in walk(loaded, iter(text), folder=tmp_path):
        for number, kept in enumerate(wanted[layer.index]):
            outputs: list[torch.Tensor] = []
            handle = layer.block.register_forward_hook(
                lambda _, __, out, outputs=outputs: outputs.append(out)
            )
            # Twice: a run leaves the inputs as they are.
            for _ in range(2):
                layer.run()
            handle.remove()
            assert torch.equal(outputs[number], kept) and torch.equal(outputs[len(text) + number], kept)
        if layer.index == 1:
            layer.advance()
    assert not list(tmp_path.iterdir())


def test_a_batchs_mask_comes_with_it(stats_model: StatsModel, text: Text) -> None:
    seen = Seen()
    walking = walk(stats_model("bert"), text)
    next(walking).run(seen)  # type: ignore[arg-type]
    for number, (mask, batch) in enumerate(zip(seen.masks, text, strict=True)):
        assert torch.equal(mask, padding_mask(batch, number, torch.device("cpu")))


def test_another_block_in_the_place_makes_the_next_inputs(stats_model: StatsModel, text: Text) -> None:
    loaded = stats_model("bert")

    class Doubled(nn.Module):
        def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
            return (2 * hidden,)

    inputs: list[torch.Tensor] = []
    for layer in walk(loaded, text[1:]):
        layer.block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        if layer.index == 0:
            layer.run()
            layer.advance(block=Doubled())
            with pytest.raises(FlashSVDError, match="L1 has been advanced already"):
                layer.advance()
    assert torch.equal(inputs[1], 2 * inputs[0])


def test_blocks_that_return_tuples(stats_model: StatsModel, text: Text) -> None:
    loaded = stats_model("bert")
    encoder = loaded.model.base_model.encoder

    class OldBlock(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
            return (self.block(*args, **kwargs),)

    def forward(hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        for block in encoder.layer:
            hidden = block(hidden, *args, **kwargs)[0]
        return hidden

    wanted = [layer.index for layer in walk(loaded, text)]
    plain = {layer.index: layer._store.read(0, layer.index)[0] for layer in walk(loaded, text)}
    encoder.layer = nn.ModuleList(OldBlock(block) for block in encoder.layer)
    encoder.forward = forward
    for layer in walk(loaded, text):
        assert torch.equal(layer._store.read(0, layer.index)[0], plain[layer.index])
        wanted.remove(layer.index)
    assert not wanted


def test_blocks_that_are_no_chain_are_refused(stats_model: StatsModel, text: Text) -> None:
    loaded = stats_model("bert")
    encoder = loaded.model.base_model.encoder

    def forward(hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        outputs = [block(hidden + 0, *args, **kwargs) for block in encoder.layer]
        return sum(outputs)

    encoder.forward = forward
    with pytest.raises(FlashSVDError, match="leave low_memory out"):
        next(walk(loaded, text))
    assert all("forward" not in block.__dict__ for block in encoder.layer)


def test_low_memory_equals_one_pass(loaded: LoadedModel, text: Text, tmp_path: Path) -> None:
    needs = ["gram", "mean", "mean_abs"]
    whole = collect(loaded, text, needs, cache=tmp_path / "whole")
    low = collect(loaded, text, needs, cache=tmp_path / "low", low_memory=True)
    assert (low.digest, low.tokens, low.sequences) == (whole.digest, whole.tokens, whole.sequences)
    assert list(low.by_slot) == list(whole.by_slot) and len(low.by_slot) == len(whole.by_slot)
    for key, stats in whole.by_slot.items():
        for need in needs:
            assert torch.equal(getattr(low.by_slot[key], need), getattr(stats, need))
    assert low.by_slot[1, "q"].gram is low.by_slot[1, "k"].gram
    with pytest.raises(KeyError):
        low.by_slot[9, "q"]


def test_low_memory_reads_what_one_pass_has_stored(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    collect(loaded, text, ["gram", "mean"], cache=tmp_path)
    monkeypatch.setattr(layerwise, "walk", None)
    low = collect(loaded, text, ["gram"], cache=tmp_path, low_memory=True)
    assert low.by_slot[0, "q"].mean is None
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match=r"L2\.down cannot be read .*collect them again"):
        low.by_slot[1, "down"]


def test_no_room_for_hidden_states_is_one_line(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layerwise, "save_file", full)
    with pytest.raises(InputError, match=r"^no room for the hidden states .*No space left.*$"):
        next(walk(stats_model("bert"), text, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_layers_share_is_kept_once_and_at_its_own_size(
    stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    loaded = stats_model("bert")
    encoder = loaded.model.base_model.encoder
    forward = encoder.forward
    # A padding mask is the same for every query, and may come as a view of one row.
    encoder.forward = lambda *args, **kwargs: forward(
        *args, **{**kwargs, "attention_mask": kwargs["attention_mask"][:, :, :1].expand(4, 1, 13, 13)}
    )
    walking = walk(loaded, text[:1], folder=tmp_path)
    layer = next(walking)
    (file,) = tmp_path.glob("*/arguments-0.safetensors")
    assert [tensor.shape for tensor in load_file(file).values()] == [(4, 1, 1, 13)]
    _, call = layer._store.read(0, 0)
    masks = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, torch.Tensor)]
    assert [tuple(mask.shape) for mask in masks] == [(4, 1, 13, 13)]
    walking.close()
    assert not list(tmp_path.iterdir())
