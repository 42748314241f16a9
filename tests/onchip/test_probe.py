"""Instrumented builds are the shipped kernels and nothing else but their probes; they compile with no GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flashsvd.errors import InputError
from flashsvd.gpus import gpu
from flashsvd.onchip import rewrite
from flashsvd.onchip.occupancy import Footprint, occupancy
from flashsvd.onchip.rewrite import instrumented, stripped
from tests.onchip.probe_calls import CALLS

ROOT = Path(__file__).resolve().parents[2]
KERNELS = [
    "attention.triton_kernel.attention_kernel",
    "embedding.triton_kernel.embed_norm_kernel",
    "ffn.triton_kernel.ffn_kernel",
    "ffn.hopper_kernel.ffn_hopper_kernel",
    "ffn_block.hopper_kernel.ffn_block_hopper_kernel",
    "linear.hopper_kernel.linear_hopper_kernel",
    "norm.triton_kernel.norm_kernel",
    "rank_space.triton_kernel.rank_space_kernel",
    "rank_space.hopper_kernel.rank_space_hopper_kernel",
    "rebuild.triton_kernel.rebuild_kernel",
    "rotary.triton_kernel.rotary_kernel",
    "step.row_kernel.row_kernel",
    "step.block_kernel.block_kernel",
    "step.attend_kernel.attend_kernel",
    "step.head_kernel.head_kernel",
]


def source_of(path: str) -> str:
    """A shipped kernel's source from its `def` on, as Triton reads it."""
    module, _, name = path.rpartition(".")
    file = ROOT / "flashsvd" / "kernels" / (module.replace(".", "/") + ".py")
    text = file.read_text("utf-8")
    node = next(one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name == name)
    lines = text.splitlines()
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def tree(source: str) -> str:
    return ast.dump(ast.parse(source))


@pytest.mark.parametrize("path", KERNELS)
def test_a_kernel_is_itself_but_for_its_probes(path: str) -> None:
    source = source_of(path)
    made = instrumented(source)
    assert tree(made) != tree(source) and tree(stripped(made)) == tree(source)
    assert made.count("probe_start(sm_trace)") == 1 and made.count("probe_end(sm_trace)") >= 1


FORMS = {
    "early": (
        "def k(x, N: tl.constexpr):\n    '''Words.'''\n    if x == 0:\n        return\n    for i in range(N):\n"
        "        if i == 2:\n            return None\n        go(x)",
        3,
    ),
    "both": ("def k(x):\n    if x:\n        go(x)\n        return\n    else:\n        return", 2),
    "last": ("def k(x, n=3):\n    go(x)\n    return", 1),
    "empty": ("def k():\n    pass", 1),
    "inner": ("def k(x):\n    f = lambda y: y\n    go(f(x))", 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_exit_has_a_probe(name: str) -> None:
    source, exits = FORMS[name]
    made = instrumented(source)
    assert made.count("probe_end(sm_trace)") == exits and tree(stripped(made)) == tree(source)
    body = ast.parse(made).body[0]
    assert isinstance(body, ast.FunctionDef) and body.args.args[0].arg == "sm_trace"
    blocks = [part for node in ast.walk(body) for _, part in ast.iter_fields(node) if isinstance(part, list)]
    for block in blocks:
        for before, after in pairwise(block):
            if isinstance(after, ast.Return):
                assert ast.unparse(before) == "probe_end(sm_trace)"
    # In the order of a run: nothing of the kernel comes ahead of the first probe.
    first = body.body[1 if name == "early" else 0]
    assert ast.unparse(first) == "probe_start(sm_trace)"


def test_a_rewrite_that_loses_a_line_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(KERNELS[2])
    real = rewrite._Exits.visit_body
    monkeypatch.setattr(rewrite._Exits, "visit_body", lambda self, body: real(self, body[:-1]))
    assert tree(stripped(instrumented(source))) != tree(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def k(x):\n    return x", "line 2 returns a value"),
        ("def k(*x):\n    pass", "any number of arguments"),
        ("def k(sm_trace):\n    pass", "uses the name sm_trace"),
        ("def k(x):\n    probe_end(x)", "uses the name probe_end"),
        ("x = 1", "one function"),
        ("def k(x:\n", "cannot be read"),
    ],
)
def test_what_cannot_be_instrumented_says_why(source: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        instrumented(source)
    assert "\n" not in str(error.value)


def report(*arguments: str) -> list[dict[str, Any]]:
    """Runs `tests.onchip.probe_report` in a process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-m", "tests.onchip.probe_report", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def fits(build: dict[str, Any]) -> int:
    processor = gpu({90: "H200", 80: "A100 80GB"}[build["sm"]]).processor
    return occupancy(
        Footprint(build["num_warps"], build["registers"], build["shared_bytes"]), processor
    ).blocks


def check(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    assert [row["name"] for row in rows] == [*names, "timer"] and rows[-1]["timers"] == 1
    for row in rows[:-1]:
        assert (row["timers"], row["smid"]) == (2, 1), row
        assert row["trace_stores"] == 3 and row["stores_after_the_end"] == 1, row
        assert row["barrier_before_the_end"], row
        plain, probing = row["plain"], row["instrumented"]
        assert probing["shared_bytes"] == plain["shared_bytes"] and probing["num_warps"] == plain["num_warps"]
        assert probing["registers"] <= plain["registers"] + 32, row
        # As many share a multiprocessor, which is what a trace is looked at for.
        assert fits(probing) == fits(plain), row
        assert probing["stack_bytes"] <= plain["stack_bytes"] + 64, row
        print(
            f"{row['name']:18} sm_{plain['sm']} Triton {plain['triton_version']}: registers {plain['registers']} to "
            f"{probing['registers']}, stack {plain['stack_bytes']} to {probing['stack_bytes']}"
        )


@pytest.mark.slow
def test_a_build_with_probes_compiles() -> None:
    check(report("compile", "90", "rank_space"), ["rank_space"])


@pytest.mark.long
@pytest.mark.parametrize("sm", [90, 80])
def test_every_build_with_probes_compiles(sm: int) -> None:
    names = [name for name in CALLS if sm == 90 or "hopper" not in name]
    check(report("compile", str(sm), *names), names)


@pytest.mark.slow
def test_launches_are_noted_whole_and_nothing_is_left_behind() -> None:
    *rows, last = report("capture")
    assert [row["name"] for row in rows] == list(CALLS) and not last["left"]
    for row in rows:
        assert row["others"] and row["first"] == "trace" and row["repeats"], row
        assert row["parameters"] and row["fixed"] and not row["left"], row
        count = 1
        for axis in row["grid"]:
            count *= axis
        assert count == row["wanted"][0] * (row["wanted"][1:] or [1])[0]


def test_an_interpreted_kernel_says_why() -> None:
    from flashsvd.kernels.backend import interpreting

    if not interpreting():
        pytest.skip("Triton compiles here")
    from flashsvd.kernels.norm.triton_kernel import norm_kernel
    from flashsvd.onchip.launches import captured
    from flashsvd.onchip.probe import probed

    with pytest.raises(InputError, match="unset TRITON_INTERPRET"):
        probed(norm_kernel)
    with pytest.raises(InputError, match="unset TRITON_INTERPRET"), captured(norm_kernel):
        pass
