"""Graphs own what they work in."""

from __future__ import annotations

import pytest
import torch

from flashsvd.engines.capture import capture

pytestmark = pytest.mark.gpu


def test_a_graph_outlives_the_workspaces_of_others() -> None:
    """As torch's own graphs, captured later, let all workspaces of cuBLAS go."""
    x, w = (torch.randn(512, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    captured = capture(lambda: x @ w.T, x.device, torch.cuda.graph_pool_handle())
    expected = (x @ w.T).clone()
    assert captured.peak_bytes == expected.nbytes
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    held = [torch.full((64 << 20,), float("nan"), device="cuda") for _ in range(4)]
    for _ in range(3):
        captured.result.fill_(float("nan"))
        captured.graph.replay()
        assert torch.equal(captured.result, expected)
        assert all(bool(one.isnan().all()) for one in held)


def test_a_graph_holds_no_workspace_that_calls_outside_use() -> None:
    x = torch.randn(256, 2048, device="cuda", dtype=torch.bfloat16)
    pool = torch.cuda.graph_pool_handle()
    first, second = (capture(lambda: x @ x.T, x.device, pool) for _ in range(2))
    expected = x @ x.T
    del first
    torch.cuda.empty_cache()
    second.graph.replay()
    assert torch.equal(second.result, expected) and torch.equal(x @ x.T, expected)
