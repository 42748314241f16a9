from pathlib import Path

import pytest
import torch

from flashsvd.errors import CheckpointError
from flashsvd.methods import method_named
from flashsvd.methods.base import Method, Spectrum
from flashsvd.models.load import LoadedModel, load
from flashsvd.spectra import compute

METHOD = method_named("svd")


def test_every_matrix_is_decomposed_once_and_read_back_equal(tiny: LoadedModel, tmp_path: Path) -> None:
    calls = []

    def counted(weight: torch.Tensor) -> Spectrum:
        calls.append(weight.shape)
        return METHOD.decompose(weight, None)

    method = Method("svd", "SVD", "", lambda weight, stats: counted(weight))
    first = compute(tiny, method, cache=tmp_path)
    again = compute(tiny, method, cache=tmp_path)
    assert len(calls) == first.computed == 18
    assert again.computed == 0
    for key, spectrum in first.by_slot.items():
        assert torch.equal(spectrum.u, again.by_slot[key].u)
        assert torch.equal(spectrum.sigma, again.by_slot[key].sigma)


def test_per_head_and_whole_are_kept_apart(tiny_folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    compute(tiny, METHOD, cache=tmp_path)
    whole = compute(load(str(tiny_folder), per_head=False), METHOD, cache=tmp_path)
    assert whole.computed == 9
    assert whole.by_slot[0, "q"].sigma.shape == (1, 64)


def test_a_cut_off_cache_file_is_computed_again(tiny: LoadedModel, tmp_path: Path) -> None:
    compute(tiny, METHOD, cache=tmp_path)
    victim = sorted(tmp_path.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    assert compute(tiny, METHOD, cache=tmp_path).computed == 1
    assert compute(tiny, METHOD, cache=tmp_path).computed == 0


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tiny: LoadedModel, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert compute(tiny, METHOD, cache=blocked / "spectra").computed == 18


def test_nan_weights_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny_folder))
    loaded.model.get_submodule("bert.encoder.layer.1.output.dense").weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"L2\.down holds NaN"):
        compute(loaded, METHOD, cache=tmp_path)
