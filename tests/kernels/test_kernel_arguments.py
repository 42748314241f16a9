"""Every mistake in a call is one line that says what was expected and what came."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from attention_cases import attention_inputs, same
from kernel_cases import FfnCase as Case
from kernel_cases import ffn_inputs

from flashsvd.errors import DeviceError, InputError
from flashsvd.kernels import HeadLayout, choose, flash_svd_attention, flash_svd_ffn, resolve

CPU = torch.device("cpu")


def attention(**changes: object) -> torch.Tensor:
    inputs = attention_inputs(same("", 5, 32, (7, 16)), torch.float32)
    arguments = {"heads": 2, "head_dim": 32, "backend": "torch"}
    projections = {letter: getattr(inputs, letter) for letter in "qkv"}
    for name, value in changes.items():
        letter, _, field = name.partition("_")
        if letter in projections and field in projections[letter]._fields:
            projections[letter] = projections[letter]._replace(**{field: value})
        else:
            arguments[name] = value
    return flash_svd_attention(**projections, **arguments)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"heads": 3}, "q.layout must have 3 heads, got 2"),
        ({"heads": 0}, "at least 1"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"head_dim": 16}, "q.u must have shape"),
        ({"q_p": torch.zeros(5, 23)}, "q.p must be [batch, sequence, width]"),
        ({"k_p": torch.zeros(2, 6, 23)}, "k.p must have shape [2, 5, 23], got [2, 6, 23]"),
        ({"v_p": torch.zeros(2, 5, 22)}, "v.p must have shape"),
        ({"v_p": torch.zeros(2, 23, 5).mT}, "last stride 1"),
        ({"k_p": torch.zeros(2, 5, 23, dtype=torch.float16)}, "cast one of them"),
        ({"q_p": torch.zeros(2, 5, 23, dtype=torch.int32)}, "float16, bfloat16, float32 or float64"),
        ({"k_u": None}, "go together"),
        ({"k_layout": None}, "go together"),
        ({"v_bias": torch.zeros(32)}, "v.bias must have shape [64], got [32]"),
        ({"k_table": torch.zeros(2, 3)}, "int32 [2, 3]"),
        ({"k_layout": HeadLayout((8, 16))}, "k.p must have shape"),
        ({"causal": 1}, "causal must be True or False, got 1"),
        ({"causal": True, "k_p": torch.zeros(2, 4, 23)}, "k.p must have at least the 5 tokens of q.p"),
        ({"causal": True, "k_p": torch.zeros(2, 6, 23)}, "v.p must have shape [2, 6, 23], got [2, 5, 23]"),
        ({"causal": True, "key_mask": torch.ones(2, 6, dtype=torch.bool)}, "bool [2, 5]"),
        ({"window": -1}, "window must be a whole number of at least 0"),
        ({"window": True}, "window must be a whole number"),
        ({"rotation": torch.zeros(2, 5, 32)}, "rotation must be (cos, sin) or None, got Tensor"),
        ({"rotation": (torch.zeros(1, 5, 32),)}, "rotation must be (cos, sin) or None, got tuple"),
        ({"rotation": (torch.zeros(1, 5, 16),) * 2}, "cos must be [2 or 1, 5, 32], a row per token of k"),
        ({"rotation": (torch.zeros(1, 5, 32), torch.zeros(2, 5, 32))}, "sin must have shape [1, 5, 32]"),
        ({"rotation": (torch.zeros(1, 32, 5).mT,) * 2}, "cos must have last stride 1"),
        ({"key_mask": torch.ones(2, 5)}, "attention_mask.bool()"),
        ({"key_mask": torch.ones(2, 6, dtype=torch.bool)}, "bool [2, 5]"),
        ({"backend": "cuda"}, "naive, torch, triton, interpret"),
    ],
)
def test_attention_refuses(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        attention(**changes)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda p, u, b, v: (p[:, :-1], u, b, v), "p must have shape [5, 7], got [5, 6]"),
        (lambda p, u, b, v: (p, u, b[:-1], v), "b1 must have shape [64], got [63]"),
        (lambda p, u, b, v: (p, u, b, v[:, :-1]), "v2 must have shape [16, 64], got [16, 63]"),
        (lambda p, u, b, v: (p, u[0], b, v), "[D, R1]"),
        (lambda p, u, b, v: (p, u.half(), b, v), "cast one of them"),
        (lambda p, u, b, v: (p.T.contiguous().T, u, b, v), "last stride 1"),
        (lambda p, u, b, v: (p, u, b, v[:0]), "at least 1"),
    ],
)
def test_ffn_refuses(change: Callable, said: str) -> None:
    with pytest.raises(InputError) as error:
        flash_svd_ffn(*change(*ffn_inputs(Case(5, 64, 7, 16), torch.float32)), activation="gelu")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_ffn_refuses_an_unknown_activation() -> None:
    with pytest.raises(InputError, match="gelu, gelu_tanh, relu, silu"):
        flash_svd_ffn(*ffn_inputs(Case(5, 64, 7, 16), torch.float32), activation="swish")


def test_the_triton_source_refuses_fp64() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter is only on where there is no GPU")
    with pytest.raises(InputError, match="float64"):
        flash_svd_ffn(*ffn_inputs(Case(5, 64, 7, 16), torch.float64), activation="gelu", backend="interpret")
    with pytest.raises(InputError, match="float64"):
        attention_inputs(same("", 5, 32, (7, 16)), torch.float64).run("interpret")


def test_a_cpu_takes_the_torch_backend() -> None:
    assert choose(CPU) == "torch"
    assert resolve(None, CPU) == "torch"
    assert [resolve(name, CPU) for name in ("naive", "torch")] == ["naive", "torch"]


def test_triton_needs_a_gpu() -> None:
    with pytest.raises(DeviceError, match="CUDA device, got cpu"):
        resolve("triton", CPU)


def in_a_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "", **environment},
        check=False,
    )


def test_interpreting_needs_the_variable_from_the_start() -> None:
    late = (
        "import triton, os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import torch; from flashsvd.kernels import resolve; resolve('interpret', torch.device('cpu'))"
    )
    assert "TRITON_INTERPRET=1 set before" in in_a_fresh_process(late).stderr
    assert in_a_fresh_process(late, TRITON_INTERPRET="1").returncode == 0


def test_importing_the_ops_imports_no_triton() -> None:
    code = "import sys, flashsvd.kernels; assert not any(m.split('.')[0] == 'triton' for m in sys.modules)"
    done = in_a_fresh_process(code)
    assert done.returncode == 0, done.stderr
