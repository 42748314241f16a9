"""Every family and head through the streaming engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flashsvd
from flashsvd.engines.build import build
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.kernels.gate import relative_error
from flashsvd.methods import method_named
from flashsvd.models.family import families
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

Inputs = dict[str, torch.Tensor]
Answer = Callable[..., torch.Tensor]
FamilyModel = Callable[..., LoadedModel]

PLANS = ["*.qkv: 9 *.o: 11 *.up: 20 *.down: 17", "*.q: 9 L1.v.h2: 5 L2.v: 12 L1.o: 11 L2.up: 20 L1.down: 17"]
every_streamed_family = pytest.mark.parametrize(
    "family", sorted(name for name, family in families().items() if not family.decoder)
)


def _engines(loaded: LoadedModel, text: str) -> dict[str, torch.nn.Module]:
    plan = RankPlan.from_text(loaded.shape, text)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    return {name: build(loaded, name, factors, plan) for name in ("lowrank", "flash")}


@every_streamed_family
@pytest.mark.parametrize("head", ["sequence", "token", "masked", "base"])
@pytest.mark.parametrize("text", PLANS)
def test_flash_equals_lowrank_at_cut_ranks(
    family_model: FamilyModel, answer: Answer, family: str, head: str, text: str, encoded: Inputs
) -> None:
    models = _engines(family_model(family, head, dtype=torch.float32), text)
    lowrank = answer(models["lowrank"], encoded)
    assert relative_error(answer(models["flash"], encoded), lowrank) < 2e-6


@every_streamed_family
def test_a_flash_checkpoint_opens_as_it_was_saved(
    family_model: FamilyModel, answer: Answer, family: str, tmp_path: Path, encoded: Inputs
) -> None:
    model = _engines(family_model(family, dtype=torch.float32), PLANS[0])["flash"]
    model.save_pretrained(tmp_path)
    again = flashsvd.load_compressed(tmp_path)
    assert again.config.quantization_config.engine == "flash"
    assert torch.equal(answer(again, encoded), answer(model, encoded))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_head_dims_stream(
    family_model: FamilyModel, answer: Answer, family: str, head_dim: int, encoded: Inputs
) -> None:
    loaded = family_model(family, dtype=torch.float32, hidden_size=2 * head_dim, num_hidden_layers=1)
    models = _engines(loaded, PLANS[0])
    lowrank = answer(models["lowrank"], encoded)
    assert relative_error(answer(models["flash"], encoded), lowrank) < 2e-6


def test_whole_matrices_of_a_rotary_family_name_the_engine_to_use(family_model: FamilyModel) -> None:
    with pytest.raises(InputError, match="use the lowrank engine"):
        _engines(family_model("modernbert", dtype=torch.float32, per_head=False), "*.qkv: 20 *.up: 12")


def test_positions_of_the_caller_turn_the_heads(family_model: FamilyModel, answer: Answer) -> None:
    models = _engines(family_model("modernbert", dtype=torch.float32), PLANS[0])
    ids = torch.randint(2, 120, (2, 21), generator=torch.Generator().manual_seed(4))
    given = {"input_ids": ids, "position_ids": torch.arange(21).flip(0)[None].expand(2, -1)}
    lowrank = answer(models["lowrank"], given)
    assert relative_error(answer(models["flash"], given), lowrank) < 2e-6
    assert relative_error(answer(models["flash"], {"input_ids": ids}), lowrank) > 1e-3
