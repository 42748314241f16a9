"""The Tiles page without a browser: the shipped table on screen, choices in the address, compiling as a job."""

from __future__ import annotations

import sys
from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from flashsvd.gpus import GPUS
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.request import CompiledCalls, CompileRequest
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]


def test_opens_with_compiled_numbers(open_app: Open) -> None:
    at = open_app("tiles")
    words = html(at)
    assert "COMPILED" in words and "compiled for rank 104, 2,048 tokens" in words
    # Below them stand programs on multiprocessors, once there is a recording.
    assert [chart.key for chart in charts(at)][:3] == ["tiles_occupancy", "tiles_program", "tiles_stairs"]
    assert "Rank 102 pads to 128" in words and "of the arithmetic is padding" in words
    assert "of 227 KiB shared memory on H200" in words
    assert "decode step (only decoders take steps of one token)" in words
    assert at.button(key="run_compile").label == "Compile again here"


def test_scrubbing_moves_the_tiles(open_app: Open) -> None:
    at = open_app("tiles")
    at.slider(key="w_tiles_program").set_value(1).run()
    at.slider(key="w_tiles_step").set_value(1).run()
    assert "tokens 1 to 32 of 2,048" in html(at) and "Columns 1 to 32 of 1,024" in html(at)
    last = at.slider(key="w_tiles_step").max
    at.slider(key="w_tiles_step").set_value(last).run()
    assert "Then S is written." in html(at)


def test_what_is_chosen_is_in_the_address_and_comes_back(open_app: Open) -> None:
    at = open_app("tiles")
    at.selectbox(key="w_tiles_gpu").set_value("L4").run()
    at.button_group(key="w_tiles_kernel").set_value("rank_space").run()
    assert link(at)["p.tiles_gpu"] == "L4" and link(at)["p.tiles_kernel"] == "rank_space"
    assert "shared memory on L4" in html(at) and "head " in html(at)
    again = open_app("tiles", **link(at))
    assert again.selectbox(key="w_tiles_gpu").value == "L4"
    assert "shared memory on L4" in html(again)


def test_a_gpu_without_the_instructions_says_so(open_app: Open) -> None:
    at = open_app("tiles", model="bert-base", dtype="bf16", batch="32", seq="512", **{"p.tiles_gpu": "T4"})
    assert "T4: has no bf16 instructions: choose fp16." in html(at)
    assert "No staircase on T4" in html(at)


def test_a_dense_layer_has_no_kernel(open_app: Open) -> None:
    at = open_app("tiles", plan="*.*: dense")
    assert "No kernel streams this layer" in html(at) and not at.exception
    assert "q, k and v of this layer are dense" in html(at)


def test_sizes_that_are_not_in_the_table_are_compiled_on_demand(open_app: Open, desk: Desk) -> None:
    at = open_app("tiles", plan="*.*: 20 *.up: 60 *.down: 90")
    assert "not compiled yet" in html(at)
    at.button(key="run_compile").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CompileRequest)
    assert (request.call.rank, request.call.rank_out, len(request.gpus)) == (64, 96, len(GPUS))
    tiles = {
        "block_m": 32, "block_d": 32, "block_r1": 64, "tail_r1": 0, "block_up": 16, "tail_up": 0,
        "block_r2": 64, "tail_r2": 0, "block_n": 32, "one_pass": True, "num_warps": 4, "num_stages": 2,
    }  # fmt: skip
    rows = tuple(Compiled(request.call, one.name, tiles, (128,), 4, 99, 20480, triton="9.9") for one in GPUS)
    desk.jobs.finish("job0", CompiledCalls(rows))
    at.run()
    words = html(at)
    assert "compiled for rank 64 and 96" in words and "here, by Triton 9.9" in words
    assert at.button(key="run_compile").label == "Compile again here"
    assert "20 KiB of 227 KiB shared memory" in words


def test_layers_that_differ_can_be_chosen(open_app: Open) -> None:
    at = open_app("tiles", plan="*.*: 24 L2.up: 40 L2.down: 40")
    assert "Rank 24 " in html(at)
    at.selectbox(key="w_tiles_layer").set_value(2).run()
    assert "Rank 40 " in html(at) and link(at)["p.tiles_layer"] == "2"


def test_the_page_imports_no_torch_itself() -> None:
    import subprocess

    code = "import sys, app.components.tile_panels; print('torch' in sys.modules, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
