"""What cutting the singular components of each unit does to the model's predictions, at every rank at once.

Scale component i of a unit by m_i: at m = 1 the model is dense, and cutting to rank k sets m_i = 0 for i >= k. KL to
the dense model is 0 there, with no slope, and its second-order term is ½·E[(vᵀ·J·dm)²] with J the Jacobian of the
logits and v a random vector with E[v·vᵀ] = diag(p) - p·pᵀ, the Fisher information of the softmax (Martens, JMLR 21,
2020, section 9). So one backward pass of vᵀ·logits gives g_i = ∂/∂m_i for every component of every unit, and

    loss(k) = ½ · Σ_{i >= k} E[g_i²]

is the KL of cutting that unit alone, for all k. Cross terms of two components are left out: with a few hundred samples
they are mostly noise (on a 6-layer BERT at keep 0.2, 96 samples, plans with them had 1.4 times the KL). With δ the
gradient at a linear's output and x its input, g_i = Σ_tokens (δ·u_i)·σ_i·(v_i·x): two products, and no parameter has
a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.methods.base import Spectrum
from flashsvd.models.family import Family
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import LINEARS, fused_sizes
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.progress import Progress
from flashsvd.spectra import Spectra
from flashsvd.stats.accumulate import (
    evaluating,
    model_inputs,
    module_of,
    padding_mask,
    tokens_of,
    wide,
)
from flashsvd.stats.fisher import gradients

_GRADIENT_SCALE = {torch.float16: 1024.0}
"""float16 loses gradients below 6e-8."""


def curvature(
    loaded: LoadedModel,
    spectra: Spectra,
    batches: Sequence[Batch],
    *,
    model: Any = None,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Expected KL in nats per prediction of cutting each unit to each rank: [units, full rank + 1] by (layer, slot).

    Costs one forward and `draws` backward passes per batch.

    model: where to expand, the dense model by default; else one that the lowrank engine made of it, whose inputs and
    gradients then are those that a compressed model sees. draws: random vectors per batch. Padding is not counted.

    Raises:
        InputError: no batches, fewer than one draw, or a model without logits over classes or tokens.
        NonFiniteError: logits or a gradient hold NaN or infinity.
    """
    if not batches or draws < 1:
        raise InputError(f"curvature needs at least one batch and one draw, got {len(batches)} and {draws}")
    model = loaded.model if model is None else model
    generator = torch.Generator().manual_seed(seed)
    places = 0
    with evaluating(model), gradients(), _Taps(loaded, spectra, model) as taps:
        for number, batch in enumerate(batches):
            if progress:
                progress("Measuring the curvature", number / len(batches))
            mask = padding_mask(batch, number, model.device)
            taps.begin(mask)
            logits = wide(model(**model_inputs(model, batch, model.device)).logits)
            if logits.dim() not in (2, 3) or logits.shape[-1] < 2:
                raise InputError(f"curvature needs logits over classes or tokens, got {list(logits.shape)}")
            if not torch.isfinite(logits).all():
                raise NonFiniteError(f"logits are not finite in batch {number + 1}: load the model in fp32")
            for draw in range(draws):
                taps.backward(logits, _root_draw(logits.detach(), mask, generator), draw + 1 < draws, number)
            places += draws * (len(logits) if logits.dim() == 2 else int(mask.sum()))
    if progress:
        progress("Measuring the curvature", 1.0)
    return {key: _tails(0.5 * total.cpu().numpy() / places) for key, total in taps.sums.items()}


def _root_draw(logits: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """v with E[v·vᵀ] = diag(p) - p·pᵀ at every place, and 0 at padding: ε·√p - p·Σ ε·√p for ε of unit normals."""
    p = logits.softmax(-1)
    noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * p.sqrt()
    v = noise - p * noise.sum(-1, keepdim=True)
    return v if v.dim() == 2 else v * mask[..., None]


def _tails(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_{i >= k} for k from 0 to all: [units, p] -> [units, p + 1], summed from the small end."""
    tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([tails, np.zeros((len(squares), 1))], axis=1)


class _Taps:
    """While open, adds up Σ over sequences of g_i², [units, full rank] per slot."""

    def __init__(self, loaded: LoadedModel, spectra: Spectra, model: Any) -> None:
        self._family, self._shape, self._spectra, self._model = loaded.family, spectra.shape, spectra, model
        self._scale = _GRADIENT_SCALE.get(model.dtype, 1.0)
        self._leaf: torch.Tensor | None = None
        self._handles: list[Any] = []
        self.sums: dict[tuple[int, str], torch.Tensor] = {}

    def __enter__(self) -> Self:
        base = self._model.base_model
        first = self._family.layers(base)[0]
        self._handles.append(first.register_forward_pre_hook(self._start, with_kwargs=True))
        for layer, slot in self._shape:
            module, start = place_of(base, self._family, self._shape, layer, slot)
            self._handles.append(module.register_forward_hook(self._hook(layer, slot, start)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaf = None

    def begin(self, mask: torch.Tensor) -> None:
        """Before a batch. mask: bool [B, S], False at padding."""
        self._mask, self._count = mask, int(mask.sum())
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        self._row_of_token = rows[mask]

    def backward(self, logits: torch.Tensor, v: torch.Tensor, again: bool, number: int) -> None:
        assert self._leaf is not None
        torch.autograd.grad((logits * v).sum() * self._scale, [self._leaf], retain_graph=again)
        for (layer, name), total in self.sums.items():
            if not torch.isfinite(total.sum()):
                raise NonFiniteError(
                    f"the gradient of L{layer + 1}.{name} is not finite in batch {number + 1}: "
                    "load the model in bf16 or fp32"
                )

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the first block's input the leaf of the graph: parameters stay without gradients."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self._leaf = hidden.detach().requires_grad_()
        if args:
            return (self._leaf, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._leaf}

    def _hook(self, layer: int, slot: Slot, start: int) -> Any:
        spectrum = self._spectra.by_slot[layer, slot.name]

        def look(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda gradient: self._add(layer, slot, start, spectrum, x, gradient))

        return look

    @torch.no_grad()
    def _add(
        self, layer: int, slot: Slot, start: int, spectrum: Spectrum, x: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        inputs = wide(tokens_of(x, self._mask, self._count))
        outputs = wide(tokens_of(gradient, self._mask, self._count))[:, start : start + slot.out_features]
        slopes = component_slopes(spectrum, inputs, outputs / self._scale)
        # [B, units, p]
        per_sequence = slopes.new_zeros(len(self._mask), *slopes.shape[1:])
        per_sequence.index_add_(0, self._row_of_token, slopes)
        squares = per_sequence.double().square().sum(0)
        key = (layer, slot.name)
        self.sums[key] = self.sums[key] + squares if key in self.sums else squares


def component_slopes(spectrum: Spectrum, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """∂/∂m_i per token, [T, units, p], where each component of a linear is scaled by m_i.

    x [T, n]: its inputs; gradient [T, units · m]: at its outputs. What the bias takes up of a mean is counted.
    """
    scale = spectrum.sigma if spectrum.scale is None else spectrum.scale
    if spectrum.mean is not None:
        x = x - spectrum.mean.to(x)
    units, rank = scale.shape
    right = (x @ spectrum.v.to(x).flatten(0, 1).T).unflatten(-1, (units, rank))
    left = torch.einsum("tum,ump->tup", gradient.unflatten(-1, (units, -1)), spectrum.u.to(x))
    return left * right * scale.to(x)


def slot_module(base_model: nn.Module, family: Family, layer: int, name: str) -> nn.Module | None:
    """The module of a slot alone; None where another computes it along with its own."""
    path = family.path(layer, name)
    owner = base_model.get_submodule(path.rpartition(".")[0])
    return None if isinstance(owner, LINEARS) else base_model.get_submodule(path)


def place_of(
    base_model: nn.Module, family: Family, shape: ModelShape, layer: int, slot: Slot
) -> tuple[nn.Module, int]:
    """The module that computes a slot, and the first of the slot's outputs among its own."""
    module = module_of(base_model, family, layer, slot.name)
    # In a model with exchanged linears each slot of a fused one may have a module of its own.
    if module is not slot_module(base_model, family, layer, slot.name):
        sizes = fused_sizes(family, shape, layer, slot.name)
        return module, sum(list(sizes.values())[: list(sizes).index(slot.name)])
    return module, 0
