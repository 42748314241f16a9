"""Fisher information: squared gradients, sequence by sequence, of every kind of head and dtype."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from flashsvd.errors import InputError
from flashsvd.kernels.gate import relative_error
from flashsvd.models.linears import LINEARS
from flashsvd.models.load import LoadedModel
from flashsvd.stats import fisher
from flashsvd.stats.collect import collect
from tests.small_models import worst

Text = list[dict[str, torch.Tensor]]
StatsModel = Callable[..., LoadedModel]
CLOSE = 1e-10


def _brute_force(loaded: LoadedModel, text: Text) -> dict[tuple[int, str], torch.Tensor]:
    """One sequence at a time, gradients of every weight by autograd."""
    model = copy.deepcopy(loaded.model).requires_grad_(True)
    total: dict[tuple[int, str], torch.Tensor] = {}
    for batch in text:
        for row in range(len(batch["input_ids"])):
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            model.zero_grad()
            _loss(model, one).backward()
            for layer, slot in loaded.shape:
                path = loaded.family.path(layer, slot.name)
                owner = model.base_model.get_submodule(path.rpartition(".")[0])
                fused = isinstance(owner, LINEARS)
                gradient = (owner if fused else model.base_model.get_submodule(path)).weight.grad
                gradient = gradient.T if loaded.family.transposed else gradient
                if fused:
                    group = next(group for group in loaded.family.fused if slot.name in group)
                    sizes = [loaded.shape.slot(layer, name).out_features for name in group]
                    gradient = gradient.split(sizes)[group.index(slot.name)]
                squares = gradient.reshape(slot.units, -1, slot.in_features).square().sum(1)
                total[layer, slot.name] = total.get((layer, slot.name), 0) + squares
    return total


def _loss(model: torch.nn.Module, one: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean over the places of one sequence, in float64: transformers' own loss of tokens is float32."""
    logits = model(**{name: tensor for name, tensor in one.items() if name != "labels"}).logits
    if logits.dim() == 2:
        return cross_entropy(logits, one.get("labels", logits.argmax(-1)))
    labels, mask = one.get("labels", one["input_ids"])[0], one.get("attention_mask")
    kept = torch.ones(len(labels), dtype=torch.bool) if mask is None else mask[0].bool()
    return cross_entropy(logits[0][kept][:-1], labels[kept][1:])


def _padded_on_the_right(text: Text) -> Text:
    """Encoders take the class from the first place: padding there would be part of what they see."""
    right = torch.ones_like(text[0]["input_ids"])
    right[0, 9:] = 0
    right[2, 4:] = 0
    return [{**text[0], "attention_mask": right}, *text[1:]]


@pytest.mark.parametrize("labelled", [False, True])
def test_fisher_equals_autograd_sequence_by_sequence(
    loaded: LoadedModel, text: Text, tmp_path: Path, labelled: bool
) -> None:
    causal = loaded.family.task == "language"
    if not causal:
        text = _padded_on_the_right(text)
    if labelled:
        text = [
            {**batch, "labels": batch["input_ids"] // 2 if causal else torch.arange(len(batch["input_ids"]))}
            for batch in text
        ]
    found = collect(loaded, text, ["fisher", "gram"], cache=tmp_path)
    for (layer, name), expected in _brute_force(loaded, text).items():
        slot = loaded.shape.slot(layer, name)
        mine = found.by_slot[layer, name].fisher
        assert mine is not None and mine.dtype == torch.float64
        assert mine.shape == (slot.units, slot.in_features)
        assert relative_error(mine, expected) < CLOSE


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("regression", 1), ("multi_label_classification", 5), ("single_label_classification", 5)],
)
def test_losses_are_those_of_transformers_sequence_by_sequence(
    stats_model: StatsModel, text: Text, kind: str, outputs: int
) -> None:
    loaded = stats_model("bert")
    loaded.model.config.problem_type = kind
    loaded.model.num_labels = outputs
    loaded.model.classifier = torch.nn.Linear(32, outputs, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(3, outputs, generator=generator, dtype=torch.float64)
    if kind == "single_label_classification":
        labels = labels.argmax(-1)
    batch = {**text[1], "labels": labels}
    with torch.no_grad():
        logits = loaded.model(text[1]["input_ids"]).logits
        mine = fisher.sequence_losses(loaded.model, logits, batch, torch.ones(3, 17, dtype=torch.bool))
        for row, loss in enumerate(mine):
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            assert torch.allclose(loaded.model(**one).loss, loss, rtol=1e-12)
    if kind != "single_label_classification":
        with pytest.raises(InputError, match="needs labels"):
            fisher.sequence_losses(loaded.model, logits, text[1], torch.ones(3, 17, dtype=torch.bool))


def test_squared_sums_in_the_place_of_sums_of_squares_are_caught(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    right = collect(loaded, text, ["fisher"], cache=tmp_path / "right")
    # All sequences of a batch taken for one: their gradients are added before they are squared.
    monkeypatch.setattr(fisher, "sequences", lambda x, mask: [x[mask]])
    assert worst(collect(loaded, text, ["fisher"], cache=tmp_path / "wrong"), right) > 1e-2


def test_a_scaled_loss_is_scaled_back(
    stats_model: StatsModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stats_model("bert")
    plain = collect(loaded, text, ["fisher"], cache=tmp_path / "plain")
    monkeypatch.setattr(fisher, "_LOSS_SCALE", {torch.float64: 1024.0})
    assert worst(collect(loaded, text, ["fisher"], cache=tmp_path / "scaled"), plain) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fisher_in_other_dtypes(
    stats_model: StatsModel, text: Text, tmp_path: Path, dtype: torch.dtype
) -> None:
    exact = collect(stats_model("llama"), text, ["fisher"], cache=tmp_path)
    limit = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.3}[dtype]
    assert worst(collect(stats_model("llama", dtype), text, ["fisher"], cache=tmp_path), exact) < limit


def test_fisher_of_heads_adds_up_to_that_of_the_whole_matrix(
    stats_model: StatsModel, text: Text, tmp_path: Path
) -> None:
    heads = collect(stats_model("bert"), text, ["fisher"], cache=tmp_path)
    whole = collect(stats_model("bert", per_head=False), text, ["fisher"], cache=tmp_path)
    mine, other = heads.by_slot[1, "k"].fisher, whole.by_slot[1, "k"].fisher
    assert mine is not None and other is not None
    assert mine.shape[0] == 4 and other.shape[0] == 1
    assert relative_error(mine.sum(0, keepdim=True), other) < CLOSE


def test_labels_decide_fisher_and_nothing_else(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded = stats_model("bert")
    first, second = ([{**text[1], "labels": torch.tensor(labels)}] for labels in ([0, 1, 2], [3, 4, 0]))
    assert (
        worst(
            collect(loaded, first, ["fisher"], cache=tmp_path),
            collect(loaded, second, ["fisher"], cache=tmp_path),
        )
        > 1e-3
    )
    grams = [collect(loaded, batches, ["gram"], cache=tmp_path).digest for batches in (first, second)]
    assert grams[0] == grams[1]


# What goes wrong
