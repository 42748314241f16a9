"""The Fisher information of every linear's weights: squared gradients, sequence by sequence (arXiv 2207.00112)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import LINEARS, fused_sizes
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.stats.accumulate import full_precision, module_of, sequences, wide

_LOSS_SCALE = {torch.float16: 1024.0}
"""float16 loses gradients below 6e-8: there the loss is scaled, and the sums are scaled back."""


class FisherTaps:
    """While open, adds up Σ over sequences and a unit's rows of (∂loss/∂W)², [units, n] float64 per slot.

    The gradient of one sequence is δᵀ·x of the linear's inputs x and output gradients δ: one matrix at a time, for no
    parameter needs a gradient of its own. `backward` is called once after each forward pass.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._scale = _LOSS_SCALE.get(loaded.model.dtype, 1.0)
        self._sums: dict[tuple[int, str], torch.Tensor] = {}
        self._leaf: torch.Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        base, family, shape = self._loaded.model.base_model, self._loaded.family, self._loaded.shape
        first = family.layers(base)[0]
        self._handles.append(first.register_forward_pre_hook(self._start, with_kwargs=True))
        rows: dict[nn.Module, list[tuple[int, Slot, int]]] = {}
        for layer, slot in shape:
            module = module_of(base, family, layer, slot.name)
            start = 0
            if any(slot.name in group for group in family.fused) and isinstance(module, LINEARS):
                sizes = fused_sizes(family, shape, layer, slot.name)
                start = sum(list(sizes.values())[: list(sizes).index(slot.name)])
            rows.setdefault(module, []).append((layer, slot, start))
        for module, parts in rows.items():
            self._handles.append(module.register_forward_hook(self._hook(parts)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaf = None

    def begin(self, mask: torch.Tensor) -> None:
        """Before a batch. mask: bool [B, S], False at padding."""
        self._mask = mask

    def backward(self, losses: torch.Tensor, number: int) -> None:
        """Adds the gradients of batch `number`. losses: one per sequence, [B].

        Raises:
            NonFiniteError: a loss or a gradient holds NaN or infinity.
        """
        finite = torch.isfinite(losses).tolist()
        if not all(finite):
            raise NonFiniteError(
                f"the loss of sequence {finite.index(False) + 1} in batch {number + 1} is not finite: check the "
                "weights of the head and the labels, or load the model in fp32"
            )
        assert self._leaf is not None
        torch.autograd.grad(losses.sum() * self._scale, [self._leaf])
        self._leaf = None
        for (layer, name), total in self._sums.items():
            if not torch.isfinite(total.sum()):
                raise NonFiniteError(
                    f"the gradient of L{layer + 1}.{name} is not finite in batch {number + 1}: "
                    "load the model in bf16 or fp32"
                )

    def result(self, layer: int, name: str) -> torch.Tensor:
        """The sums of one slot, [units, n]."""
        return self._sums[layer, name] / self._scale**2

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the first block's input the leaf of the graph: parameters stay without gradients."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self._leaf = hidden.detach().requires_grad_()
        if args:
            return (self._leaf, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._leaf}

    def _hook(self, parts: list[tuple[int, Slot, int]]) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda gradient: self._add(parts, x, gradient))

        return look

    def _add(self, parts: list[tuple[int, Slot, int]], x: torch.Tensor, gradient: torch.Tensor) -> None:
        pairs = zip(sequences(x, self._mask), sequences(gradient, self._mask), strict=True)
        for inputs, outputs in pairs:
            with full_precision():
                whole = wide(outputs).T @ wide(inputs)
            for layer, slot, start in parts:
                units = whole[start : start + slot.out_features].unflatten(0, (slot.units, slot.unit_out))
                squares = units.square().sum(1, dtype=torch.float64)
                key = (layer, slot.name)
                self._sums[key] = self._sums[key] + squares if key in self._sums else squares


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Gradients are recorded while inside, also where the caller has switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def sequence_losses(model: Any, logits: torch.Tensor, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """The loss of every sequence [B], as the model itself gives it for that sequence alone.

    A sequence's loss is the mean over its places, padding and labels of -100 left out. Without labels in the batch,
    a causal language model has its own input to predict, and any other head its own most likely class.

    Raises:
        InputError: labels are missing for a regression, or do not fit the logits.
    """
    logits = wide(logits)
    labels = batch.get("labels")
    labels = None if labels is None else labels.to(logits.device)
    if logits.dim() == 2:
        return _class_losses(model, logits, labels)
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        targets = batch["input_ids"].to(logits.device) if labels is None else labels
        _check_labels(targets, mask.shape)
        return _token_losses(logits[:, :-1], targets[:, 1:], mask[:, :-1] & mask[:, 1:])
    targets = logits.argmax(-1).detach() if labels is None else labels
    _check_labels(targets, logits.shape[:2])
    return _token_losses(logits, targets, mask)


def _class_losses(model: Any, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    kind = getattr(model.config, "problem_type", None)
    if kind is None:
        whole = labels is None or not labels.is_floating_point()
        kind = (
            "regression"
            if logits.shape[1] == 1
            else "single_label_classification"
            if whole
            else "multi_label_classification"
        )
    if labels is None:
        if kind != "single_label_classification":
            raise InputError(f"fisher of a model with a {kind} head needs labels in every batch")
        labels = logits.argmax(-1).detach()
    if kind == "single_label_classification":
        _check_labels(labels, logits.shape[:1])
        return cross_entropy(logits, labels, reduction="none")
    labels = labels.to(logits.dtype).reshape(len(labels), -1)
    _check_labels(labels, logits.shape)
    if kind == "regression":
        return mse_loss(logits, labels, reduction="none").mean(1)
    return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def _token_losses(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """logits [B, S, classes], targets and mask [B, S]; 0 where a sequence has nothing to predict."""
    counted = mask & (targets != -100)
    losses = cross_entropy(
        logits.transpose(1, 2), targets.masked_fill(~counted, -100), reduction="none", ignore_index=-100
    )
    return losses.sum(1) / counted.sum(1).clamp_min(1)


def _check_labels(labels: torch.Tensor, expected: torch.Size) -> None:
    if labels.shape != expected:
        raise InputError(f"labels must have shape {list(expected)}, got {list(labels.shape)}")
