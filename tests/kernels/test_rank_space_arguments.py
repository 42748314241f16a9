"""Rank-space attention: every mistake in a call is one line, and which memory the output may take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import skip_without_interpreter
from rank_space_cases import Case, expect, inputs_of

from flashsvd.errors import InputError
from flashsvd.kernels import HeadLayout, rank_space_attention

# Each changes one argument of a sound call with q, k [2, 5, 23] and v [2, 5, 23], ranks (7, 16).
PACKED = torch.zeros(2, 5, 80)
BAD = [
    ({"q": torch.zeros(5, 23)}, "q must be [batch, sequence, width], got [5, 23]"),
    ({"q": torch.zeros(2, 5, 22)}, "q must have shape [2, 5, 23], got [2, 5, 22]"),
    ({"kv_group": 2}, "q must have shape [2, 5, 46], got [2, 5, 23]"),
    ({"k": torch.zeros(2, 6, 23)}, "k must have shape [2, 5, 23], got [2, 6, 23]"),
    ({"v": torch.zeros(2, 5, 24)}, "v must have shape"),
    ({"v": torch.zeros(2, 23, 5).mT}, "last stride 1"),
    ({"k": torch.zeros(2, 5, 23).half()}, "cast one of them"),
    ({"q": torch.zeros(2, 5, 23, dtype=torch.int32)}, "float16, bfloat16, float32 or float64"),
    ({"q": None}, "q must be a tensor, got NoneType"),
    ({"score": (7, 16)}, "score must be a HeadLayout, got tuple"),
    ({"value": HeadLayout((8, 8), shared=True)}, "factor head by head"),
    ({"value": HeadLayout((8, 8, 7))}, "as many heads, the kv heads, got 2 and 3"),
    ({"kv_group": 0}, "kv_group must be a whole number of at least 1, got 0"),
    ({"kv_group": 1.0}, "kv_group must be a whole number"),
    ({"scale": 0.0}, "scale must be a finite number above 0, got 0.0"),
    ({"scale": float("nan")}, "scale must be a finite number"),
    ({"causal": 1}, "causal must be True or False, got 1"),
    ({"causal": True, "k": torch.zeros(2, 4, 23)}, "k must have at least the 5 tokens of q"),
    ({"causal": True, "k": torch.zeros(2, 7, 23)}, "v must have shape [2, 7, 23], got [2, 5, 23]"),
    ({"key_mask": torch.ones(2, 5)}, "attention_mask.bool()"),
    ({"key_mask": torch.ones(2, 6, dtype=torch.bool)}, "bool [2, 5]"),
    ({"key_mask": [True]}, "key_mask must be a tensor or None, got list"),
    ({"out": torch.zeros(2, 5, 22)}, "out must have shape [2, 5, 23], got [2, 5, 22]"),
    ({"out": torch.zeros(2, 5, 23).half()}, "out is torch.float16"),
    ({"out": torch.zeros(2, 23, 5).mT}, "out must have last stride 1"),
    ({"q": PACKED[..., :23], "out": PACKED[..., 1:24]}, "out shares memory with q but is not q"),
    ({"k": PACKED[..., :23], "out": PACKED[..., 22:45]}, "out shares memory with k"),
    ({"v": PACKED[..., :23], "out": PACKED[..., :23]}, "out shares memory with v"),
    ({"q": PACKED[..., :23], "out": PACKED[..., :23], "value": HeadLayout((16, 7))}, "the same ranks"),
    ({"backend": "cuda"}, "naive, torch, triton, interpret"),
]


@pytest.mark.parametrize("changes, said", BAD, ids=[said for _, said in BAD])
def test_refuses(changes: dict[str, object], said: str) -> None:
    arguments = {letter: torch.zeros(2, 5, 23) for letter in "qkv"}
    layouts = {"score": HeadLayout((7, 16)), "value": HeadLayout((7, 16))}
    with pytest.raises(InputError) as error:
        rank_space_attention(**(arguments | layouts | changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_out_may_lie_between_the_slices_of_one_tensor() -> None:
    inputs = inputs_of(Case("", 5, (7, 16), (7, 16)), torch.float32)
    whole = torch.cat([inputs.q, inputs.k, inputs.v, torch.zeros_like(inputs.q)], -1)
    q, k, v, out = whole.split(23, dim=-1)
    replace(inputs, q=q, k=k, v=v).run("torch", out=out)
    expect(inputs, out)


@pytest.mark.parametrize(
    "change, said", [({"dtype": torch.float64}, "float64"), ({"value": (1025,)}, "ranks up to 1024")]
)
def test_the_triton_source_refuses(change: dict[str, Any], said: str) -> None:
    skip_without_interpreter("interpret")
    case = Case("", 3, (7,), change.get("value", (7,)))
    with pytest.raises(InputError, match=said) as error:
        inputs_of(case, change.get("dtype", torch.float32)).run("interpret")
    assert "use backend 'torch'" in str(error.value)
