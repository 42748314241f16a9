"""The timeline against an independent count, and its own rules."""

import itertools

import pandas as pd
import pytest
import torch
from torch import nn

from flashsvd.allocate import uniform
from flashsvd.engines.build import build, weight_bytes
from flashsvd.factors import factorise
from flashsvd.measure.memory import allocator_peak_bytes, peak_activation_bytes, record_timeline
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.results import TIMELINE_COLUMNS
from flashsvd.spectra import compute


class Toy(nn.Module):
    """Two layers whose bytes are known by heart: 1 MiB in and out of each, 4 MiB between."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 256, bias=False)
        self.second = nn.Linear(256, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.fixture(scope="module")
def toy() -> tuple[Toy, torch.Tensor, pd.DataFrame]:
    model, x = Toy(), torch.randn(4096, 64)
    with torch.inference_mode():
        return model, x, record_timeline(model, [model.first, model.second], lambda: model(x))


def test_known_bytes_at_known_places(toy: tuple[Toy, torch.Tensor, pd.DataFrame]) -> None:
    model, _, frame = toy
    assert tuple(frame.columns) == TIMELINE_COLUMNS
    assert frame["category"].iloc[0] == "weight"
    assert frame["bytes"].iloc[0] == weight_bytes(model) == 2 * 64 * 256 * 4
    births = frame[(frame["bytes"] > 0) & (frame["category"] != "weight")]
    assert births["bytes"].tolist() == [4 * 2**20, 2**20]
    assert births["module"].tolist() == ["first", "second"]
    assert births["layer"].tolist() == [0, 1]
    assert peak_activation_bytes(frame) == 5 * 2**20


def test_everything_born_dies(toy: tuple[Toy, torch.Tensor, pd.DataFrame]) -> None:
    _, _, frame = toy
    assert frame["bytes"].iloc[1:].sum() == 0
    assert (frame["live_bytes"] == frame["bytes"].cumsum()).all()
    assert frame["event"].is_monotonic_increasing and frame["time_ms"].is_monotonic_increasing


def test_what_dies_inside_its_module_is_workspace() -> None:
    class Scratch(nn.Module):
        device = torch.device("cpu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scratch = x * 2
            return scratch.sum(0)

    model, x = nn.Sequential(Scratch()), torch.ones(100, 10)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    frame = record_timeline(model, list(model), lambda: model(x))
    kinds = frame.groupby("category")["bytes"].max()
    assert kinds["workspace"] == 4000 and kinds["activation"] == 40


def test_views_and_in_place_ops_are_not_new_memory() -> None:
    class Views(nn.Module):
        device = torch.device("cpu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1)[:10].add_(1).t()

    model, x = Views(), torch.ones(100, 10)
    assert peak_activation_bytes(record_timeline(model, [], lambda: model(x))) == 0


def test_a_leak_would_be_seen() -> None:
    kept = []

    class Leaky(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept.append(self.first(x))
            return self.second(kept[-1])

    model, x = Leaky(), torch.randn(4096, 64)
    with torch.inference_mode():
        frame = record_timeline(model, [], lambda: model(x))
    assert frame["bytes"].iloc[1:].sum() == 4 * 2**20


@pytest.mark.parametrize("engine", ["dense", "lowrank", "flash"])
def test_the_peak_is_the_allocators(tiny: LoadedModel, engine: str) -> None:
    """torch's profiler hooks the CPU allocator itself: it sees what ops take inside, which the mode cannot."""
    plan = uniform(tiny.shape, 0.5)
    model = build(tiny, engine, factorise(tiny, compute(tiny, method_named("svd")), plan), plan)
    ids = torch.randint(200, (16, 64))

    @torch.inference_mode()
    def forward() -> object:
        return model(ids)

    forward()
    frame = record_timeline(model, tiny.family.layers(model.base_model), forward)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        forward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events))
    assert peak_activation_bytes(frame) == pytest.approx(peak, rel=0.03)


def test_layers_are_counted(tiny: LoadedModel) -> None:
    ids = torch.randint(200, (2, 16))
    frame = record_timeline(tiny.model, tiny.family.layers(tiny.model.base_model), lambda: tiny.model(ids))
    assert set(frame["layer"]) == {-1, 0, 1, 2}
    inside = frame[frame["layer"] == 1]["module"]
    assert inside.str.startswith("bert.encoder.layer.1").all()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["dense", "lowrank", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_the_cuda_allocators(engine: str, dtype: torch.dtype) -> None:
    loaded = load("bert-base", dtype=dtype, device="cuda")
    plan = uniform(loaded.shape, 0.5)
    model = build(loaded, engine, factorise(loaded, compute(loaded, method_named("svd")), plan), plan)
    ids = torch.randint(30000, (16, 256), device="cuda")

    @torch.inference_mode()
    def forward() -> object:
        return model(ids)

    for _ in range(3):
        forward()
    frame = record_timeline(model, loaded.family.layers(model.base_model), forward)
    allocator = allocator_peak_bytes(loaded.device, forward)
    assert peak_activation_bytes(frame) == pytest.approx(allocator, rel=0.01)
