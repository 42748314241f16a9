"""Every family and head through the low-rank engine and its checkpoints."""

import copy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.compare import compare
from flashsvd.curve import score_curve
from flashsvd.data import evaluation_samples, timing_ids
from flashsvd.engines.build import build, weight_bytes
from flashsvd.engines.modules import FusedLinear
from flashsvd.errors import ModelError
from flashsvd.factors import factorise, reconstruct
from flashsvd.kernels.gate import relative_error
from flashsvd.methods import method_named
from flashsvd.models.family import families
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest, CurveRequest, PlanChoice
from flashsvd.spectra import compute, weight_of

Inputs = dict[str, torch.Tensor]
Answer = Callable[..., torch.Tensor]
FamilyModel = Callable[..., LoadedModel]

# Of the linears that ModernBERT fuses, some whole, some in part and one not at all.
MIXED = "*.q: 9 L1.v.h2: 5 L2.v: 12 *.o: 11 L1.up: 20 *.down: 17"
every_family = pytest.mark.parametrize(
    "family", sorted(name for name, family in families().items() if not family.decoder)
)
every_head = pytest.mark.parametrize("head", ["sequence", "token", "masked", "base"])


def _lowrank(loaded: LoadedModel, plan: RankPlan) -> torch.nn.Module:
    return build(loaded, "lowrank", factorise(loaded, compute(loaded, method_named("svd")), plan), plan)


@every_family
@every_head
def test_full_rank_equals_transformers(
    family_model: FamilyModel, answer: Answer, family: str, head: str, encoded: Inputs
) -> None:
    loaded = family_model(family, head)
    dense = answer(loaded.model, encoded)
    assert dense.isfinite().all()
    model = _lowrank(loaded, RankPlan.full_rank(loaded.shape))
    assert relative_error(answer(model, encoded), dense) < 1e-10


@every_family
@every_head
@pytest.mark.parametrize("per_head", [True, False])
def test_cut_ranks_equal_a_dense_model_of_the_rebuilt_weights(
    family_model: FamilyModel, answer: Answer, family: str, head: str, per_head: bool, encoded: Inputs
) -> None:
    loaded = family_model(family, head, per_head=per_head)
    plan = RankPlan.from_text(loaded.shape, MIXED if per_head else MIXED.replace(".h2", ""))
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    rebuilt = copy.deepcopy(loaded.model)
    for (layer, name), factor in factors.items():
        slot = loaded.shape.slot(layer, name)
        linear = linear_of(rebuilt.base_model, loaded.family, loaded.shape, layer, name)
        linear.weight.copy_(reconstruct(slot, factor))
    lowrank = answer(build(loaded, "lowrank", factors, plan), encoded)
    assert relative_error(lowrank, answer(rebuilt, encoded)) < 1e-10
    assert relative_error(lowrank, answer(loaded.model, encoded)) > 1e-3


@every_family
@every_head
def test_what_is_saved_is_what_is_read(
    family_model: FamilyModel, answer: Answer, family: str, head: str, tmp_path: Path
) -> None:
    loaded = family_model(family, head, dtype=torch.float32)
    ids = {"input_ids": torch.arange(2, 32).reshape(2, 15)}
    model = _lowrank(loaded, RankPlan.from_text(loaded.shape, MIXED))
    model.save_pretrained(tmp_path / "once")
    again = flashsvd.load_compressed(tmp_path / "once")
    assert type(again) is type(loaded.model)
    assert torch.equal(answer(again, ids), answer(model, ids))
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(answer(flashsvd.load_compressed(tmp_path / "twice"), ids), answer(model, ids))


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("family", ["distilbert", "modernbert", "roberta"])
def test_head_dims(
    family_model: FamilyModel, answer: Answer, family: str, head_dim: int, encoded: Inputs
) -> None:
    loaded = family_model(family, hidden_size=2 * head_dim, num_hidden_layers=1)
    assert loaded.shape.head_dim == head_dim
    model = _lowrank(loaded, RankPlan.full_rank(loaded.shape))
    assert relative_error(answer(model, encoded), answer(loaded.model, encoded)) < 1e-10


def test_biases_of_fused_linears_stay(family_model: FamilyModel, answer: Answer, encoded: Inputs) -> None:
    loaded = family_model("modernbert", attention_bias=True, mlp_bias=True, norm_bias=True)
    full = RankPlan.full_rank(loaded.shape)
    dense = answer(loaded.model, encoded)
    assert relative_error(answer(_lowrank(loaded, full), encoded), dense) < 1e-10
    model = _lowrank(loaded, full)
    model.base_model.get_submodule("layers.1.mlp.Wi.up").bias = None
    assert relative_error(answer(model, encoded), dense) > 1e-3


@pytest.mark.parametrize("pair", [("attn.Wqkv.q", "attn.Wqkv.k"), ("mlp.Wi.gate", "mlp.Wi.up")])
def test_parts_of_a_fused_linear_in_each_others_place_are_caught(
    family_model: FamilyModel, answer: Answer, encoded: Inputs, pair: tuple[str, str]
) -> None:
    loaded = family_model("modernbert")
    model = _lowrank(loaded, RankPlan.full_rank(loaded.shape))
    one, two = (f"layers.1.{path}" for path in pair)
    first, second = model.base_model.get_submodule(one), model.base_model.get_submodule(two)
    model.base_model.set_submodule(one, second)
    model.base_model.set_submodule(two, first)
    assert relative_error(answer(model, encoded), answer(loaded.model, encoded)) > 1e-3


def test_a_fused_linear_is_split_only_where_a_part_is_factored(
    family_model: FamilyModel, answer: Answer, encoded: Inputs
) -> None:
    loaded = family_model("modernbert")
    model = _lowrank(loaded, RankPlan.from_text(loaded.shape, "L1.q: 9"))
    split = [name for name, module in model.named_modules() if isinstance(module, FusedLinear)]
    assert split == ["model.layers.0.attn.Wqkv"]
    whole = _lowrank(loaded, uniform(loaded.shape, 1.0))
    assert torch.equal(answer(whole, encoded), answer(loaded.model, encoded))


def test_dense_parts_are_the_dense_models_memory_and_are_counted(family_model: FamilyModel) -> None:
    loaded = family_model("modernbert")
    plan = RankPlan.from_text(loaded.shape, "L2.q: 9")
    model = _lowrank(loaded, plan)
    for layer, slot in loaded.shape:
        if (layer, slot.name) != (1, "q"):
            mine = linear_of(model.base_model, loaded.family, loaded.shape, layer, slot.name).weight
            assert mine.data_ptr() == weight_of(loaded, layer, slot).data_ptr()
    saved = 8 * (loaded.shape.dense_parameters - plan.kept_parameters)
    assert weight_bytes(model) == weight_bytes(loaded.model) - saved


def _with_evaluation_set(folder: Path) -> Path:
    """Adds a tokenizer and three labelled pieces to a saved model."""
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    frame = pd.DataFrame({"text": ["a b c", "d e", "f g h i"], "label": [0, 1, 2]})
    frame.to_parquet(folder / "evaluation.parquet")
    return folder


@every_head
def test_only_labels_of_whole_sequences_are_scored(
    family_folder: Callable[..., Path], head: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in family_folder("electra", head).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    loaded = flashsvd.load(str(_with_evaluation_set(folder)))
    scored = head == "sequence"
    assert (evaluation_samples(loaded, 3, 0) is not None) == scored
    # Text is a better input than noise for any head.
    assert timing_ids(loaded, 1, 20, 0).max() < 31

    model = str(folder)
    request = CompareRequest(
        model=model,
        choice=PlanChoice(keep=0.5),
        engines=("dense", "lowrank"),
        batch=2,
        seq=12,
        repeats=1,
        samples=3,
    )
    assert all((run.metric is not None) == scored for run in compare(request).runs)
    if not scored:
        with pytest.raises(ModelError, match="accuracy does not apply"):
            score_curve(CurveRequest(model=model, keeps=(0.5,), samples=3))
