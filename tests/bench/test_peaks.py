"""Peak memory by engine."""

import torch
from torch import nn

from flashsvd.bench.peaks import NoModel, engine_peak_bytes, peak_bytes

CPU = torch.device("cpu")


def _call() -> object:
    wide = torch.ones(1000, 100)
    return wide.sum(0)


def test_an_eager_engine_is_followed_op_by_op() -> None:
    assert peak_bytes(NoModel(CPU), _call, CPU) == 4 * (1000 * 100 + 100)
    assert engine_peak_bytes("dense", NoModel(CPU), _call, CPU) == 4 * (1000 * 100 + 100)


def test_compiled_code_on_a_cpu_cannot_be_followed() -> None:
    assert engine_peak_bytes("dense-compile", NoModel(CPU), _call, CPU) is None


def test_a_graph_says_what_its_capture_took() -> None:
    class Graphed:
        peak_bytes = 12345

        def __call__(self) -> None: ...

    model = nn.Module()
    model.forward = Graphed()
    assert engine_peak_bytes("flash-graph", model, _call, CPU) == 12345
