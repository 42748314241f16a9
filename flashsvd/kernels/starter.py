"""Starting a kernel again at little cost: what was checked and prepared for one call serves all that look like it.

On the H200's host a Triton launch costs 17 us and the checks and preparation before it 20 to 80; the kernel itself,
called as Triton keeps it, 8. So an op looks at its tensors (`looks`), remembers under that what passed its checks
(`Kept`), and starts a kernel whose compiled form is known (`Launch`).
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

KEPT_CALLS = 1024
"""Kinds of calls that an op remembers; each is a few kilobytes."""

T = TypeVar("T")


def looks(tensors: Sequence[torch.Tensor | None], *others: Hashable) -> tuple[Any, ...] | None:
    """All that a check or a compiled kernel may depend on but where the tensors are and what is in them: shapes,
    strides, dtypes, devices, alignment to 16 bytes (all that Triton looks at), and `others` as they are.

    It holds no tensor. None where one is no tensor or has no memory to point at, as under tracing.

    >>> looks((torch.zeros(3), None), 7) == looks((torch.ones(3), None), 7) != looks((torch.zeros(4), None), 7)
    True
    >>> looks(([0.0],)) is None
    True
    """
    try:
        return (
            others,
            *[
                None if t is None else (t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % 16)
                for t in tensors
            ],
        )
    except (AttributeError, TypeError, RuntimeError):
        return None


class Kept(Generic[T]):
    """What was prepared for the last `size` kinds of calls, by their looks; the one that came first goes first.

    >>> kept = Kept(size=2)
    >>> kept.keep("a", 1), kept.keep("b", 2), kept.keep("c", 3)
    (1, 2, 3)
    >>> kept.find("a"), kept.find("c"), kept.find(None), kept.find(["no key"])
    (None, 3, None, None)
    """

    def __init__(self, size: int = KEPT_CALLS) -> None:
        self._size = size
        self._held: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def find(self, key: Hashable) -> T | None:
        """What was kept under `key`; None for nothing, and for a key that is None or cannot be one."""
        try:
            return self._held.get(key)
        except TypeError:
            return None

    def values(self) -> list[T]:
        """All that is kept, the oldest first."""
        with self._lock:
            return list(self._held.values())

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._held.clear()

    def keep(self, key: Hashable, made: T) -> T:
        """`made`, kept where `key` can be one."""
        if key is None:
            return made
        with self._lock, contextlib.suppress(TypeError):
            self._held[key] = made
            while len(self._held) > self._size:
                del self._held[next(iter(self._held))]
        return made


class Launch:
    """A Triton or Gluon kernel with all that it is given but the tensors: a grid, numbers, constants, options.

    Triton compiles for the constants, for whether a number is 1, a multiple of 16 or above 32 bits, and for a
    tensor's dtype and whether it starts on 16 bytes. All but the tensors' part is fixed here, so a launch has one
    compiled kernel as long as its tensors look the same from call to call (`looks`), which its callers see to. The
    first call goes through Triton; later ones give the kernel that this returned its arguments at once, on the stream
    that is current then. Profilers' launch hooks are called by either way. A launch keeps no tensor. Settings of
    Triton that change what is compiled (TRITON_DEBUG, instrumentation) have to be made before the first call.

    Where Triton returns no compiled kernel, as in its interpreter, or a kernel has hooks that run before it, every
    call goes through Triton.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        tensors: Sequence[str],
        fixed: Mapping[str, object],
        device: torch.device,
        **options: int,
    ) -> None:
        """tensors: the parameters that every call gives, in its order (tensors or tensor descriptors). fixed: all
        others, constants among them."""
        places = {name: place for place, name in enumerate((*tensors, *fixed))}
        missing = set(kernel.arg_names) ^ set(places)
        if missing:
            raise ValueError(f"a launch gives every parameter of its kernel a value and no other: {missing}")
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        self._ordered = operator.itemgetter(*(places[name] for name in kernel.arg_names))
        self._fixed = tuple(fixed.values())
        self._options = options
        self._index = device.index if device.type == "cuda" else None
        self._compiled: Any = None
        self._tried = False

    def given(self, *tensors: object) -> tuple[Any, dict[str, object], dict[str, int]]:
        """What the first call gives Triton: the kernel, its arguments by name, and options."""
        names = self._kernel.arg_names
        return (
            self._kernel,
            dict(zip(names, self._ordered(tensors + self._fixed), strict=True)),
            self._options,
        )

    def __call__(self, *tensors: object) -> None:
        """Starts the kernel on the current stream of the device that it was made for."""
        arguments = self._ordered(tensors + self._fixed)
        compiled = self._compiled
        if compiled is None or self._kernel.pre_run_hooks:
            self._through_triton(arguments)
            return
        driver, index = self._driver.active, self._index
        if driver.get_current_device() == index:
            compiled(*arguments, stream=driver.get_current_stream(index))
        else:
            with torch.cuda.device(index):
                compiled(*arguments, stream=driver.get_current_stream(index))

    def _through_triton(self, arguments: tuple[object, ...]) -> None:
        # Triton takes the current device, not the arguments'.
        with contextlib.nullcontext() if self._index is None else torch.cuda.device(self._index):
            returned = self._kernel[self._grid](*arguments, **self._options)
            if self._tried:
                return
            self._tried = True
            from triton.compiler import CompiledKernel
            from triton.runtime import driver

            if self._index is not None and isinstance(returned, CompiledKernel):
                self._driver = driver
                self._compiled = returned[self._grid]
