"""What is remembered of a call, and that a kernel is started once through Triton and then at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashsvd.kernels.starter import Kept, Launch, looks


class Compiled:
    """What Triton's compiled kernels are to a launch."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, stream: self.kernel.repeats.append((grid, arguments, stream))


class FakeKernel:
    """Counts the launches that go through it and those that go to what it returned."""

    def __init__(self, returns: bool = True) -> None:
        self.arg_names, self.pre_run_hooks = ["x", "n", "out", "BLOCK"], []
        self.returned = Compiled(self) if returns else None
        self.first: list[Any] = []
        self.repeats: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*arguments: object, **options: int) -> Compiled | None:
            self.first.append((grid, arguments, options))
            return self.returned

        return launch

    def launch(self) -> Launch:
        fixed = {"BLOCK": 64, "n": 5}
        return Launch(self, (3,), ("out", "x"), fixed, torch.device("cuda", 1), num_warps=4)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with two GPUs and a stream on each, which needs neither."""
    import triton.compiler
    from triton.runtime import driver

    here = SimpleNamespace(current=1, entered=[])

    @contextlib.contextmanager
    def enter(index: int):  # type: ignore[no-untyped-def]
        here.entered.append(index)
        yield

    fake = SimpleNamespace(
        get_current_device=lambda: here.current, get_current_stream=lambda index: 100 * index + 7
    )
    monkeypatch.setattr(driver, "_active", fake)
    monkeypatch.setattr(triton.compiler, "CompiledKernel", Compiled)
    monkeypatch.setattr(torch.cuda, "device", enter)
    return here


def test_the_second_launch_goes_to_the_compiled_kernel(device: SimpleNamespace) -> None:
    kernel = FakeKernel()
    launch = kernel.launch()
    launch("out", "x")
    assert kernel.first == [((3, 1, 1), ("x", 5, "out", 64), {"num_warps": 4})] and device.entered == [1]
    launch("other", "x")
    assert kernel.repeats == [((3, 1, 1), ("x", 5, "other", 64), 107)] and len(kernel.first) == 1
    assert device.entered == [1]


def test_a_launch_goes_to_the_device_that_it_was_made_for(device: SimpleNamespace) -> None:
    kernel = FakeKernel()
    launch = kernel.launch()
    launch("out", "x")
    device.current = 0
    launch("out", "x")
    assert device.entered == [1, 1] and kernel.repeats[0][2] == 107


def test_what_triton_does_not_return_is_not_called(device: SimpleNamespace) -> None:
    kernel = FakeKernel(returns=False)
    launch = kernel.launch()
    for _ in range(3):
        launch("out", "x")
    assert len(kernel.first) == 3 and not kernel.repeats


def test_hooks_before_a_run_are_not_passed_by(device: SimpleNamespace) -> None:
    kernel = FakeKernel()
    launch = kernel.launch()
    launch("out", "x")
    kernel.pre_run_hooks.append(print)
    launch("out", "x")
    assert len(kernel.first) == 2 and not kernel.repeats


def test_what_triton_is_given_can_be_asked_for() -> None:
    kernel = FakeKernel()
    given = kernel.launch().given("out", "x")
    assert given == (kernel, {"x": "x", "n": 5, "out": "out", "BLOCK": 64}, {"num_warps": 4})
    assert not kernel.first


def test_a_launch_gives_every_parameter() -> None:
    for fixed, said in (({"n": 5}, "BLOCK"), ({"n": 5, "BLOCK": 64, "more": 1}, "more")):
        with pytest.raises(ValueError, match=said):
            Launch(FakeKernel(), (1,), ("x", "out"), fixed, torch.device("cpu"))


def test_looks_tell_apart_what_triton_does() -> None:
    first = torch.zeros(4, 8)
    others = [
        torch.zeros(4, 9),
        torch.zeros(8, 4).T,
        torch.zeros(4, 8, dtype=torch.float16),
        torch.zeros(4, 8, device="meta"),
        torch.zeros(33)[1:].view(4, 8),
        None,
    ]
    found = {looks((tensor,)) for tensor in (first, *others)}
    assert len(found) == 1 + len(others)
    assert looks((torch.ones(4, 8),)) in found and looks((first,), 1) not in found


def test_kept_is_bounded() -> None:
    kept: Kept[int] = Kept(3)
    for i in range(10):
        kept.keep((i,), i)
    assert len(kept) == 3 and kept.find((9,)) == 9 and kept.find((6,)) is None
