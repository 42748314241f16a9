"""Tensors without memory, for runs that are predicted: fake ones, that answer what engines ask of real ones.

torch's FakeTensorMode knows the shape, dtype and device of everything a model computes, and holds none of it. Four
things it leaves open, and they are settled here: where a tensor lies (engines compare addresses to see what shares
memory), whether two factors are equal (engines make equal ones share memory), whether transformers' mask code has to
build a mask, and that dropout outside training gives back its input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_APART = 2**48
"""Bytes between the addresses that two storages are given."""
_READ = (torch.ops.aten.is_nonzero, torch.ops.aten.item, torch.ops.aten._local_scalar_dense)


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Everything that is made inside is a fake tensor on the CPU; models built and run there take no memory."""
    known = _Contents()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # transformers builds every mask in full where it sees fake tensors, as for a graph that is to be exported.
    with (
        mock.patch("transformers.masking_utils.is_tracing", lambda *_: False),
        mode,
        known,
        _Answers(known),
    ):
        yield mode


class _Storage:
    """A storage with an address."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def data_ptr(self) -> int:
        return int(self._storage._cdata) * _APART

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class _Answers(TorchFunctionMode):
    """What is asked of tensors from Python."""

    def __init__(self, known: _Contents) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.data_ptr:
            tensor = args[0]
            return _storage(tensor)._cdata * _APART + tensor.storage_offset() * tensor.element_size()
        if func is torch.Tensor.untyped_storage:
            return _Storage(func(*args, **kwargs))
        if func is torch.equal:
            return self.known.equal(*args, **kwargs)
        return func(*args, **kwargs)


class _Contents(TorchDispatchMode):
    """Which rows of a storage are copies of which: a number per row, the same for rows that hold the same values.

    Followed through copies, concatenation and padding at the end, as engines pack factors; all else is new.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self.next = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.dropout.default and not args[2]:
            return args[0]
        if func.overloadpacket in _READ:
            # Asked by transformers' mask code alone, of positions that it made itself: no sequence is packed.
            return True
        out = func(*args, **kwargs)
        before = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _storage(tensor)._cdata not in before:
                self.rows.pop(_storage(tensor)._cdata, None)
                found = self._copied(func.overloadpacket, args)
                if found is not None and tensor.dim() and tensor.is_contiguous():
                    self.rows[_storage(tensor)._cdata] = (tensor.stride(0), found)
        return out

    def _copied(self, op: Any, args: Any) -> NDArray[np.int64] | None:
        aten = torch.ops.aten
        if op in (aten._to_copy, aten.clone, aten.to, aten.contiguous):
            return self.of(args[0])
        if op is aten.cat and (len(args) < 2 or args[1] == 0):
            return np.concatenate([self.of(part) for part in args[0]])
        if op is aten.constant_pad_nd and not any(args[1][:-1]) and len(args[1]) == 2 * args[0].dim():
            return np.concatenate([self.of(args[0]), self._new(args[1][-1])])
        return None

    def of(self, tensor: torch.Tensor) -> NDArray[np.int64]:
        """A number for each row of a tensor."""
        if not tensor.dim():
            return self._new(1)
        key, step = _storage(tensor)._cdata, tensor.stride(0)
        if not tensor.is_contiguous() or not step:
            return self._new(len(tensor))
        if key not in self.rows:
            self.rows[key] = (step, self._new(_storage(tensor).nbytes() // (step * tensor.element_size())))
        whole, numbers = self.rows[key]
        first, beyond = divmod(int(tensor.storage_offset()), step)
        if whole != step or beyond:
            return self._new(len(tensor))
        return numbers[first : first + len(tensor)]

    def equal(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Whether two tensors hold the same values, row by row."""
        return a.shape == b.shape and bool((self.of(a) == self.of(b)).all())

    def _new(self, count: int) -> NDArray[np.int64]:
        self.next += count
        return np.arange(self.next - count, self.next)


def _storage(tensor: torch.Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


__all__ = ["FakeTensor", "fake_tensors"]
