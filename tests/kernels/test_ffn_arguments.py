"""Every mistake in a call of the gated op or the second version is one line."""

from __future__ import annotations

import pytest
import torch
from ffn_cases import Form, operands, run

from flashsvd.errors import InputError
from flashsvd.kernels.ffn.operands import FfnOperands

GATED = Form(5, 64, 7, 16, "silu", rank_up=9)
SECOND = Form(5, 64, 7, 16, "gelu", out_width=12)


def changed(form: Form, field: str, change: object) -> FfnOperands:
    ffn = operands(form, torch.float32)
    return ffn._replace(**{field: change(getattr(ffn, field)) if callable(change) else change})


@pytest.mark.parametrize(
    "form, field, change, said",
    [
        (GATED, "p", lambda p: p[:, :-1], "gate_p must have shape [5, 7], got [5, 6]"),
        (GATED, "b1", lambda b: b[:-1], "gate_b must have shape [64], got [63]"),
        (GATED, "u1", lambda u: u.half(), "gate_u is torch.float16 but gate_p is torch.float32"),
        (GATED, "up_p", lambda p: p[:-1], "up_p must have shape [5, 9], got [4, 9]"),
        (GATED, "up_p", lambda p: p.T.contiguous().T, "up_p must have last stride 1"),
        (GATED, "up_p", [1.0], "up_p must be a tensor, got list"),
        (GATED, "up_u", lambda u: u[:-1], "up_u must have shape [64, 9], got [63, 9]"),
        (GATED, "up_u", lambda u: u[0], "[D, R1]"),
        (GATED, "up_u", lambda u: u[:, :0], "the rank of up 0"),
        (GATED, "up_b", lambda b: b.double(), "cast one of them"),
        (GATED, "v2", lambda v: v[:, :-1], "v2 must have shape [16, 64], got [16, 63]"),
        (GATED, "activation", "tanh", "gelu, gelu_tanh, relu, silu, got 'tanh'"),
        (SECOND, "u2", lambda u: u[:, :-1], "u2 must have shape [12, 16], got [12, 15]"),
        (SECOND, "u2", lambda u: u[0], "u2 must be [N, R2], got [16]"),
        (SECOND, "u2", lambda u: u[:0], "every size must be at least 1"),
        (SECOND, "b2", lambda b: b[:-1], "b2 must have shape [12], got [11]"),
    ],
)
def test_refuses(form: Form, field: str, change: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        run(changed(form, field, change), "torch")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "out, said",
    [
        (torch.zeros(5, 15), "out must have shape [5, 16], got [5, 15]"),
        (torch.zeros(5, 16, dtype=torch.float16), "out is torch.float16 but p is torch.float32"),
        (torch.zeros(16, 5).T, "out must have last stride 1"),
        ("here", "out must be a tensor, got str"),
    ],
)
def test_refuses_an_output(out: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        run(operands(GATED, torch.float32), "torch", out)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_refuses_an_output_whose_rows_are_not_evenly_spaced() -> None:
    ffn = operands(Form(6, 64, 7, 16), torch.float32)
    with pytest.raises(InputError, match="pass a contiguous one"):
        run(ffn._replace(p=ffn.p.view(2, 3, 7)), "torch", torch.zeros(2, 4, 16)[:, :3])


def test_the_triton_source_refuses_fp64() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter is only on where there is no GPU")
    for form in (GATED, SECOND):
        with pytest.raises(InputError, match="float64"):
            run(operands(form, torch.float64), "interpret")
