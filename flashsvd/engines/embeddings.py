"""The embeddings of the encoders in the flash engine: one hidden state written, where transformers holds four."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flashsvd.engines.sublayer import bias_of
from flashsvd.kernels.arguments import DTYPES
from flashsvd.kernels.embedding import INDEX_DTYPES, embed_norm
from flashsvd.models.family import with_methods

_KNOWN = frozenset(
    f"transformers.models.{module}"
    for module in (
        "bert.modeling_bert.BertEmbeddings",
        "distilbert.modeling_distilbert.Embeddings",
        "electra.modeling_electra.ElectraEmbeddings",
        "roberta.modeling_roberta.RobertaEmbeddings",
        "xlm_roberta.modeling_xlm_roberta.XLMRobertaEmbeddings",
    )
)
"""Modules whose forward is norm(word + position + token type): names of submodules do not tell what is done with
them, so a subclass, or another family's module, keeps its own."""


def stream_embeddings(base_model: nn.Module, backend: str | None) -> None:
    """Makes a base model's `embeddings` look up, add and norm in one op, in place; names and parameters stay.

    The module's own forward goes on to run for `inputs_embeds`, in training, for inputs that do not fit, and where a
    submodule is no longer what transformers put there, or is hooked. Any other module is left as it is. The result
    is always fresh memory, [B, S, N], as the blocks write over it. backend: of `flashsvd.kernels`.
    """
    module = getattr(base_model, "embeddings", None)
    if f"{type(module).__module__}.{type(module).__qualname__}" not in _KNOWN:
        return
    assert isinstance(module, nn.Module)
    own = type(module).forward
    signature = inspect.signature(own)

    def forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # By name: the families differ in the order of their arguments. Binding takes 8 us, with the GPU idle.
        named = not args and kwargs.keys() <= signature.parameters.keys()
        given = kwargs if named else signature.bind(self, *args, **kwargs).arguments
        found = _lookups(self, given) if _is_plain(self) else None
        if found is None:
            own_result: torch.Tensor = own(self, *args, **kwargs)
            return own_result
        tables, indices, bias = found
        norm = self.LayerNorm
        return embed_norm(tables, indices, norm.weight, bias_of(norm), norm.eps, bias=bias, backend=backend)

    with_methods(module, forward=forward)


def _lookups(
    module: Any, given: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor | None] | None:
    """Tables, their indices [B, S] or [1, S], and the row added to every token; None for what the op cannot do."""
    ids = given.get("input_ids")
    if given.get("inputs_embeds") is not None or not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        return None
    words, positions = module.word_embeddings.weight, module.position_embeddings.weight
    tables, indices = [words, positions], [ids, _position_ids(module, ids, given)]
    types = getattr(module, "token_type_embeddings", None)
    bias = None
    if types is not None and given.get("token_type_ids") is None:
        # Every token is of type 0.
        bias = types.weight[0]
    elif types is not None:
        tables.append(types.weight)
        indices.append(given["token_type_ids"])
    shapes = (ids.shape, (1, ids.shape[1]))
    fits = all(
        isinstance(index, torch.Tensor)
        and index.dtype in INDEX_DTYPES
        and index.shape in shapes
        and index.device == words.device
        for index in indices
    )
    return (tables, indices, bias) if fits else None


def _position_ids(module: Any, ids: torch.Tensor, given: Mapping[str, Any]) -> Any:
    """The position of every token: as given, counted from the padding (RoBERTa), or 0, 1, 2, ..."""
    position_ids = given.get("position_ids")
    if position_ids is not None:
        return position_ids
    # Its name in transformers 5.24, and in 5.17.
    past = given.get("cache_length", given.get("past_key_values_length", 0))
    if hasattr(module, "create_position_ids_from_input_ids"):
        return module.create_position_ids_from_input_ids(ids, module.padding_idx, past)
    return module.position_ids[:, past : ids.shape[1] + past]


def _is_plain(module: nn.Module) -> bool:
    """Whether only torch's own lookups and norm would run, and no one listens to them."""
    # Asked before a GPU has anything to do, so by the dictionaries that torch's own iterators go through.
    if module.training:
        return False
    weights: list[torch.Tensor] = []
    for name, child in module._modules.items():
        kind = nn.Dropout if name == "dropout" else nn.LayerNorm if name == "LayerNorm" else nn.Embedding
        if type(child) is not kind or child.training or _is_heard(child):
            return False
        if isinstance(child, nn.Embedding) and child.max_norm is not None:
            return False
        weights += [weight for weight in child._parameters.values() if weight is not None]
    first = weights[0]
    alike = all(weight.dtype == first.dtype and weight.device == first.device for weight in weights)
    return alike and first.dtype in DTYPES and module.get_submodule("LayerNorm").weight is not None


def _is_heard(module: nn.Module) -> bool:
    """Whether a hook waits for this module to run, or stands in its place (as those of accelerate do).

    Hooks of this package do not count: they follow what runs, and the timeline of a model must be that of the model
    without them.
    """
    if "forward" in vars(module):
        return True
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(hook, "__module__", "").startswith("flashsvd.") for hook in hooks)
