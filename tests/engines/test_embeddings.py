"""Every family's embeddings through the op equal transformers' own, which go on to serve what the op does not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flashsvd.engines import embeddings
from flashsvd.engines.embeddings import stream_embeddings
from flashsvd.kernels.gate import relative_error
from flashsvd.measure.memory import record_timeline
from flashsvd.models.family import families
from flashsvd.models.load import LoadedModel

FamilyModel = Callable[..., LoadedModel]
Pair = tuple[Any, Any]

every_family = pytest.mark.parametrize(
    "family",
    sorted(name for name, family in families().items() if not family.decoder and name != "modernbert"),
)
IDS = torch.randint(2, 120, (5, 21), generator=torch.Generator().manual_seed(5))
TYPES = torch.randint(2, (5, 21), generator=torch.Generator().manual_seed(6))
POSITIONS = torch.randint(2, 60, (5, 21), generator=torch.Generator().manual_seed(7))
PADDED = IDS.clone()
PADDED[0, 13:] = PADDED[1, :6] = PADDED[3, 1:] = 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each call of the op was given."""
    seen: list[int] = []

    def counted(tables: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(tables))
        return op(tables, *args, **kwargs)

    op = embeddings.embed_norm
    monkeypatch.setattr(embeddings, "embed_norm", counted)
    return seen


def pair(model: FamilyModel, family: str, dtype: torch.dtype = torch.float64, **sizes: Any) -> Pair:
    """A base model's own embeddings, and a copy of them that streams."""
    base = model(family, "base", dtype=dtype, **sizes).model.base_model
    streamed = copy.deepcopy(base)
    stream_embeddings(streamed, None)
    return base.embeddings, streamed.embeddings


def inputs(module: nn.Module, **given: torch.Tensor) -> dict[str, torch.Tensor]:
    """What of `given` the module takes."""
    return {
        name: value
        for name, value in given.items()
        if name != "token_type_ids" or hasattr(module, "token_type_embeddings")
    }


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("ids", [IDS, PADDED, IDS[:1, :1]], ids=["unpadded", "padded", "one token"])
def test_equals_the_modules_own(
    family_model: FamilyModel, calls: list[int], family: str, dtype: torch.dtype, ids: torch.Tensor
) -> None:
    own, streamed = pair(family_model, family, dtype)
    batch, seq = ids.shape
    types, positions = TYPES[:batch, :seq], POSITIONS[:batch, :seq]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for more in (
        {},
        {"token_type_ids": types},
        {"position_ids": positions},
        {"position_ids": positions[:1]},
        {"token_type_ids": types[:1], "position_ids": positions},
    ):
        given = inputs(own, input_ids=ids, **more)
        calls.clear()
        out = streamed(**given)
        assert calls == [3 if "token_type_ids" in given else 2]
        assert relative_error(out, own(**given)) < tolerance


@every_family
def test_the_result_is_fresh_memory(family_model: FamilyModel, family: str) -> None:
    _, streamed = pair(family_model, family)
    first = streamed(IDS)
    kept = first.clone()
    weights = [weight.clone() for weight in streamed.parameters()]
    first.fill_(float("nan"))
    assert torch.equal(streamed(IDS), kept)
    assert all(torch.equal(*two) for two in zip(weights, streamed.parameters(), strict=True))


@every_family
def test_arguments_go_by_the_modules_own_order(
    family_model: FamilyModel, calls: list[int], family: str
) -> None:
    own, streamed = pair(family_model, family)
    given = (IDS, None, POSITIONS)
    assert relative_error(streamed(*given), own(*given)) < 1e-12
    assert calls == [2]
    with pytest.raises(TypeError, match="colour"):
        streamed(IDS, colour=3)


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "xlm-roberta"])
def test_positions_may_start_later(family_model: FamilyModel, calls: list[int], family: str) -> None:
    own, streamed = pair(family_model, family)
    names = inspect.signature(type(own).forward).parameters
    name = "cache_length" if "cache_length" in names else "past_key_values_length"
    given = {"input_ids": PADDED, name: 4}
    assert relative_error(streamed(**given), own(**given)) < 1e-12
    assert relative_error(streamed(PADDED), own(**given)) > 1e-3
    assert calls == [2, 2]


@every_family
def test_inputs_embeds_and_training_are_the_modules_own(
    family_model: FamilyModel, calls: list[int], family: str
) -> None:
    own, streamed = pair(family_model, family)
    words = own.word_embeddings(IDS)
    given = {"input_ids": None, "inputs_embeds": words}
    assert torch.equal(streamed(**given), own(**given))
    out = streamed.train()(IDS)
    assert (out == 0).any()
    assert not calls


def test_what_a_hook_or_another_submodule_does_is_not_skipped(
    family_model: FamilyModel, calls: list[int]
) -> None:
    own, streamed = pair(family_model, "bert")
    seen: list[torch.Tensor] = []
    handle = streamed.word_embeddings.register_forward_hook(lambda _, __, out: seen.append(out))
    streamed(IDS)
    handle.remove()
    assert len(seen) == 1 and not calls
    streamed.LayerNorm = nn.Identity()
    assert relative_error(streamed(IDS), own(IDS)) > 0.1
    assert not calls
    streamed.LayerNorm = own.LayerNorm
    streamed(IDS)
    assert calls == [2]


@pytest.mark.parametrize("name", ["word_embeddings", "LayerNorm"])
def test_what_replaces_or_precedes_a_submodule_is_not_skipped(
    family_model: FamilyModel, calls: list[int], name: str
) -> None:
    own, streamed = pair(family_model, "bert")
    child = getattr(streamed, name)
    with child.register_forward_pre_hook(lambda _, args: (args[0] * 0,)):
        assert relative_error(streamed(IDS), own(IDS)) > 0.1
    child.forward = lambda x: type(child).forward(child, x * 0)
    assert relative_error(streamed(IDS), own(IDS)) > 0.1
    assert not calls


def test_a_timeline_sees_the_op(family_model: FamilyModel, calls: list[int]) -> None:
    loaded = family_model("bert", "base")
    streamed = copy.deepcopy(loaded.model)
    stream_embeddings(streamed, None)
    record_timeline(streamed, loaded.family.layers(streamed), lambda: streamed(IDS))
    assert calls == [2]


def test_one_submodule_in_training_is_enough(family_model: FamilyModel, calls: list[int]) -> None:
    _, streamed = pair(family_model, "bert")
    streamed.dropout.train()
    assert (streamed(IDS) == 0).any() and not calls


@pytest.mark.parametrize(
    "given",
    [
        {"input_ids": IDS.repeat(1, 4)},
        {"input_ids": torch.full_like(IDS, 120)},
        {"input_ids": IDS, "position_ids": POSITIONS[:, :3]},
    ],
    ids=["too long", "no such word", "too few positions"],
)
def test_mistakes_are_torchs_own(family_model: FamilyModel, given: dict[str, torch.Tensor]) -> None:
    for module in pair(family_model, "bert"):
        with pytest.raises((IndexError, RuntimeError)):
            module(**given)


def test_ids_that_broadcast_are_the_modules_own(family_model: FamilyModel, calls: list[int]) -> None:
    own, streamed = pair(family_model, "distilbert")
    given = {"input_ids": IDS[:1], "position_ids": POSITIONS}
    assert torch.equal(streamed(**given), own(**given)) and not calls


def test_other_modules_stay_as_they_are(family_model: FamilyModel) -> None:
    from transformers.models.bert.modeling_bert import BertEmbeddings

    class Doubled(BertEmbeddings):
        """Its submodules are BERT's, what it does with them is not."""

        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return 2 * super().forward(*args, **kwargs)

    loaded = family_model("bert", "base")
    base = copy.deepcopy(loaded.model.base_model)
    base.embeddings.__class__ = Doubled
    stream_embeddings(base, None)
    assert type(base.embeddings) is Doubled
    modern = copy.deepcopy(family_model("modernbert", "base").model.base_model)
    before = type(modern.embeddings)
    stream_embeddings(modern, None)
    assert type(modern.embeddings) is before
    stream_embeddings(nn.Linear(2, 2), None)
