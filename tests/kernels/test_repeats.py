"""Repeated calls of an op: what is remembered of the first never lets a wrong one through, or keeps its tensors."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import skip_without_interpreter
from repeat_cases import CALLS, LAYOUT, PRODUCTS, SEQUENCES, Call, norm_call

from flashsvd.errors import InputError
from flashsvd.kernels import flash_svd_ffn, norm, rank_space_attention
from flashsvd.kernels.norm import fused_norm
from flashsvd.kernels.starter import Kept, Launch

CHOICES = st.tuples(
    st.sampled_from(CALLS),
    st.sampled_from((0, 1, 8)),
    st.sampled_from((1, 2, 16, 17)),
    st.sampled_from((16, 17, 32)),
    st.sampled_from((torch.float32, torch.float16)),
)


@given(st.lists(CHOICES, min_size=2, max_size=12))
def test_a_launch_is_given_what_triton_compiles_alike(choices: list[tuple[Any, ...]]) -> None:
    """Triton's own key, asked for every argument of every launch: one launch, one key; and like calls share one."""
    skip_without_interpreter("interpret")
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import BaseBackend

    keys: dict[Launch, set[Any]] = defaultdict(set)
    used: dict[tuple[Any, ...], set[Launch]] = defaultdict(set)

    def record(launch: Launch, *tensors: object) -> None:
        arguments = launch._ordered(tensors + launch._fixed)
        keys[launch].add(
            tuple(
                value if name.isupper() else native_specialize_impl(BaseBackend, value, False, True, True)
                for name, value in zip(launch._kernel.arg_names, arguments, strict=True)
            )
        )
        used[choice].add(launch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "__call__", record)
        for choice in choices:
            call, *sizes = choice
            call(*sizes, "interpret", "cpu")()
            call(*sizes, "interpret", "cpu")()
    assert keys and all(len(found) == 1 for found in keys.values())
    assert all(len(launches) == 1 for launches in used.values())


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_an_op_is_bounded_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_interpreter(backend)
    kept: Kept[Any] = Kept(4)
    monkeypatch.setattr(norm, "_starts", kept)
    for rows in range(1, 10):
        norm_call(0, rows, 8, torch.float32, backend, "cpu")()
    assert len(kept) == 4


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("call", [*CALLS, *SEQUENCES, *PRODUCTS])
def test_no_tensor_is_kept(call: Callable[..., Call], backend: str) -> None:
    skip_without_interpreter(backend)
    run = call(0, 3, 32, torch.float32, backend, "cpu")
    cells = [cell.cell_contents for cell in run.__closure__ or ()]
    alive = [weakref.ref(cell) for cell in cells if isinstance(cell, torch.Tensor)]
    out = run()
    run()
    alive.append(weakref.ref(out))
    del run, cells, out
    gc.collect()
    assert len(alive) > 2 and all(tensor() is None for tensor in alive)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"q": torch.zeros(2, 5, 23)}, "q must have shape"),
        ({"k": torch.zeros(2, 24, 5).mT}, "last stride 1"),
        ({"v": torch.zeros(2, 5, 24).half()}, "cast one of them"),
        ({"v": torch.zeros(2, 5, 24, device="meta")}, "move one of them"),
        ({"v": [0.0]}, "v must be a tensor, got list"),
        ({"kv_group": True}, "kv_group must be a whole number"),
        ({"kv_group": 1.0}, "kv_group must be a whole number"),
        ({"window": True}, "window must be a whole number"),
        ({"causal": 1}, "causal must be True or False"),
        ({"window": [1]}, "window must be a whole number"),
        ({"scale": float("nan")}, "finite number"),
        ({"score": (8, 16)}, "score must be a HeadLayout"),
        ({"key_mask": torch.ones(2, 5)}, "key_mask must be bool"),
        ({"out": torch.zeros(2, 5, 23)}, "out must have shape"),
        ({"out": "here"}, "out must be a tensor, got str"),
        ({"backend": "cuda"}, "naive, torch, triton, interpret"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_after_good_ones(change: dict[str, Any], said: str) -> None:
    q, k, v = (torch.randn(2, 5, 24) for _ in "qkv")
    sound = {"q": q, "k": k, "v": v, "score": LAYOUT, "value": LAYOUT, "kv_group": 1, "window": 1}
    for _ in range(2):
        rank_space_attention(**sound, backend="torch")
        with pytest.raises(InputError, match=said):
            rank_space_attention(**({"backend": "torch"} | sound | change))


def test_memory_that_is_shared_is_refused_after_memory_that_is_not() -> None:
    """Inputs and output look alike in every call; where they are is what changes."""
    memory = torch.zeros(2, 5, 120)
    q, k, v, apart = (memory[..., start : start + 24] for start in (0, 24, 48, 80))
    sound = {"score": LAYOUT, "value": LAYOUT, "backend": "torch"}
    for _ in range(2):
        for out in (q, apart):
            rank_space_attention(q, k, v, out=out, **sound)
        for out, said in ((k, "shares memory with k"), (memory[..., 8:32], "with k"), (v, "with v")):
            with pytest.raises(InputError, match=said):
                rank_space_attention(q, k, v, out=out, **sound)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_an_output_over_the_input_is_right_after_one_elsewhere(backend: str) -> None:
    """Rows that reach into the next ones' input go by way of other memory, however often rows that do not came."""
    skip_without_interpreter(backend)
    u1, v2 = torch.randn(64, 16), torch.randn(16, 64)
    for shift in (None, 0, 16, 8, None, 8, 0):
        memory = torch.randn(310, 16).flatten()
        p = memory[: 300 * 16].view(300, 16)
        expected = flash_svd_ffn(p, u1, None, v2, activation="relu", backend="naive")
        out = torch.empty(300, 16) if shift is None else memory[shift : shift + 300 * 16].view(300, 16)
        flash_svd_ffn(p, u1, None, v2, activation="relu", out=out, backend=backend)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["naive", "torch", "interpret"])
def test_no_gradients_are_recorded(backend: str) -> None:
    skip_without_interpreter(backend)
    x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    assert not fused_norm(x, weight, weight, 1e-5, backend=backend).requires_grad
    assert fused_norm(x, weight, None, 1e-5, out=x, backend=backend) is x and x.is_leaf
    p, u1, v2 = (torch.randn(16, 16, requires_grad=True) for _ in range(3))
    assert not flash_svd_ffn(p, u1, None, v2, activation="silu", backend=backend).requires_grad
    assert flash_svd_ffn(p, u1, None, v2, activation="silu", out=p, backend=backend) is p and p.is_leaf
    q, k, v = (torch.randn(1, 5, 24, requires_grad=True) for _ in "qkv")
    arguments: dict[str, Any] = {"score": LAYOUT, "value": LAYOUT, "backend": backend}
    assert not rank_space_attention(q, k, v, **arguments).requires_grad
    assert rank_space_attention(q, k, v, out=q, **arguments) is q and q.is_leaf


@pytest.fixture
def repeats_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, no launch may go through Triton any more."""

    def refuse(*_: object) -> None:
        raise AssertionError("this launch went through Triton")

    return lambda: monkeypatch.setattr(Launch, "_through_triton", refuse)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(0, 130, 64), (0, 17, 1024), (8, 64, 256)], ids=str)
@pytest.mark.parametrize("call", [*CALLS, *SEQUENCES, *PRODUCTS])
def test_a_repeated_launch_gives_what_the_first_gave(
    call: Callable[..., Call], sizes: tuple[int, int, int], repeats_only: Callable[[], None]
) -> None:
    run = call(*sizes, torch.bfloat16, "triton", "cuda")
    first = run()
    repeats_only()
    assert torch.equal(run(), first)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        aside = run()
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(aside, first)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, first)


@pytest.mark.gpu
@pytest.mark.parametrize("call", [*CALLS, *SEQUENCES, *PRODUCTS])
def test_a_repeated_launch_waits_for_its_own_stream(call: Callable[..., Call]) -> None:
    """Its output follows what its stream has still to do."""
    run = call(0, 64, 256, torch.bfloat16, "triton", "cuda")
    first = run()
    inputs = [
        cell.cell_contents for cell in run.__closure__ or () if isinstance(cell.cell_contents, torch.Tensor)
    ]
    changed = next(tensor for tensor in inputs if tensor.is_floating_point() and tensor.dim() > 1)
    before = changed.clone()
    changed.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        changed.copy_(before)
        late = run()
    torch.cuda.synchronize()
    assert torch.equal(late, first)


@pytest.mark.gpu
def test_launch_hooks_see_repeated_launches(repeats_only: Callable[[], None]) -> None:
    from triton import knobs

    run = norm_call(0, 33, 64, torch.bfloat16, "triton", "cuda")
    run()
    repeats_only()
    seen: list[str] = []

    def enter(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(enter)
    try:
        run()
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
    assert seen == ["norm_kernel"]
