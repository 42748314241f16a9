"""CUDA graphs of the flash engine: the same numbers, for every shape that falls into a bucket."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.engines.build import build
from flashsvd.engines.graph import KEPT_GRAPHS, GraphedForward, bucket
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute


@given(batch=st.integers(1, 300), seq=st.integers(1, 512))
def test_a_bucket_holds_its_shape_and_wastes_little(batch: int, seq: int) -> None:
    rows, columns = bucket(batch, seq, 512)
    assert rows >= batch and columns >= seq and columns <= 512
    assert rows < 2 * batch and columns < seq + 64
    assert bucket(rows, columns, 512) == (rows, columns)


@pytest.fixture(scope="module")
def models(tiny_folder: object) -> dict[str, torch.nn.Module]:
    loaded = load(str(tiny_folder), dtype=torch.float16, device="cuda")
    plan = RankPlan.from_text(loaded.shape, "*.qkv: 9 *.o: 11 *.up: 20 *.down: 17")
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    return {
        "flash": build(loaded, "flash", factors, plan),
        "graph": build(loaded, "flash", factors, plan, graph=True),
        "static": build(loaded, "flash", factors, plan, graph="static"),
    }


@pytest.mark.gpu
@torch.inference_mode()
def test_graphs_give_what_the_engine_gives(models: dict[str, torch.nn.Module]) -> None:
    for batch, seq in ((1, 1), (3, 17), (4, 64), (9, 33), (4, 64)):
        ids = torch.randint(200, (batch, seq), device="cuda")
        mask = torch.ones_like(ids)
        mask[0, seq // 2 + 1 :] = 0
        for options in ({}, {"attention_mask": mask}, {"token_type_ids": torch.zeros_like(ids)}):
            plain = models["flash"](input_ids=ids, **options).logits
            for name in ("graph", "static"):
                found = models[name](input_ids=ids, **options).logits
                torch.testing.assert_close(found, plain, rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
@torch.inference_mode()
def test_copies_outlive_the_next_call_and_graphs_are_bounded(models: dict[str, torch.nn.Module]) -> None:
    graph = models["graph"]
    first = graph(torch.ones(2, 64, dtype=torch.long, device="cuda")).logits
    kept = first.clone()
    for batch in range(1, 40, 3):
        graph(torch.full((batch, 64), batch, dtype=torch.long, device="cuda"))
    assert torch.equal(first, kept)
    forward = graph.forward
    assert isinstance(forward, GraphedForward) and len(forward._graphs) <= KEPT_GRAPHS
    assert forward.peak_bytes > 0


@pytest.mark.gpu
def test_what_a_graph_cannot_do_goes_to_the_model(models: dict[str, torch.nn.Module]) -> None:
    ids = torch.randint(200, (2, 24), device="cuda")
    with torch.inference_mode():
        states = models["graph"](input_ids=ids, output_hidden_states=True).hidden_states
        assert len(states) == 4
        tuple_form = models["graph"](input_ids=ids, return_dict=False)
    assert isinstance(tuple_form, tuple)
