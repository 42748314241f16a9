import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.measure.fidelity import Outputs, check_input, judge, outputs, reference_outputs
from flashsvd.measure.intervals import wilson_interval
from flashsvd.measure.latency import quantiles, time_engines
from flashsvd.models.load import LoadedModel


@given(st.integers(1, 2000), st.data())
def test_wilson_holds_the_share_and_stays_in_range(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12 and correct / n - 1e-12 <= high <= 1


def test_engines_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    found = time_engines(calls, torch.device("cpu"), repeats=4, budget_seconds=10)
    assert order == ["a", "b"] * 5
    assert found["a"][1] == 4 and found["a"][0].p20 <= found["a"][0].p50 <= found["a"][0].p80
    slow = time_engines(calls, torch.device("cpu"), repeats=50, budget_seconds=0)
    assert slow["a"][1] == 3
    assert quantiles([2.0]).p50 == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gate_passes_rounding_and_catches_planted_bugs(tiny: LoadedModel, dtype: torch.dtype) -> None:
    import copy

    model = copy.deepcopy(tiny.model).to(dtype)
    ids, mask = check_input(torch.randint(200, (8, 30), generator=torch.Generator().manual_seed(0)))
    assert len(ids) == 4 and mask[1, -10:].sum() == 0 and mask[2, :10].sum() == 0
    found = outputs(model, tiny.family, ids, mask)
    reference, name = reference_outputs(model, tiny.family, ids, mask)

    def verdict(mine: Outputs) -> bool:
        return judge(mine, found, reference, name=name, dtype=dtype, sublayers=6).passed

    assert verdict(found)
    no_mask = outputs(model, tiny.family, ids, torch.ones_like(mask))
    assert not verdict(replace(no_mask, states=no_mask.states[mask.bool().flatten()]))
    broken = copy.deepcopy(model)
    broken.bert.encoder.layer[2].output.dense.bias.zero_()
    assert not verdict(outputs(broken, tiny.family, ids, mask))
    broken = copy.deepcopy(model)
    broken.bert.encoder.layer[0].intermediate.dense.weight[-1].zero_()
    assert not verdict(outputs(broken, tiny.family, ids, mask))
    assert not verdict(replace(found, states=found.states * math.nan))
    assert found.logits is not None
    assert not verdict(replace(found, logits=found.logits * math.nan))
