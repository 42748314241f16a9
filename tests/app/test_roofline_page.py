"""The Roofline page without a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from streamlit.testing.v1 import AppTest

from flashsvd.jobs.kinds.ceilings import CeilingsRequest, MachineCeiling
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]


def traces(at: AppTest, index: int = 0) -> dict[str, Any]:
    found = json.loads(charts(at)[index].proto.spec)
    return {trace["name"]: trace for trace in found["data"]}


def test_opens_with_a_sentence_and_every_operation(open_app: Open) -> None:
    at = open_app("roofline")
    words = html(at)
    assert "At batch 8 and 256 tokens" in words and "bound by" in words and "PREDICTED" in words
    assert "MEASURED" in words, "the roof of the recordings that ship"
    assert len(traces(at)["dense"]["x"]) == 5 and len(traces(at)["flash"]["x"]) == 4
    assert len(charts(at)) == 2


def test_low_rank_stored_has_a_point_for_each_dense_one(open_app: Open) -> None:
    at = open_app("roofline")
    at.segmented_control(key="w_roofline_engine").set_value("lowrank").run()
    assert len(traces(at)["lowrank"]["x"]) == 5 and link(at)["p.roofline_engine"] == "lowrank"


def test_a_gpu_of_the_data_sheets(open_app: Open) -> None:
    at = open_app("roofline")
    at.selectbox(key="w_roofline_gpu").set_value("L4, data sheet").run()
    assert "DATA SHEET" in html(at) and "on an L4" in html(at)
    assert link(at)["p.roofline_gpu"] == "L4, data sheet"


def test_precisions_a_gpu_lacks_are_not_offered(open_app: Open) -> None:
    at = open_app("roofline", dtype="bf16")
    assert "T4, data sheet" not in at.selectbox(key="w_roofline_gpu").options
    at = open_app("roofline", dtype="fp16")
    assert "T4, data sheet" in at.selectbox(key="w_roofline_gpu").options


def test_a_decoder_can_decode_and_one_token_is_bound_by_memory(open_app: Open) -> None:
    at = open_app(
        "roofline", model="llama-2-7b", heads="whole", batch="1", seq="512", dtype="bf16", keep="0.5"
    )
    at.segmented_control(key="w_roofline_mode").set_value("decode").run()
    words = html(at)
    assert "For the next token at batch 1, 512 in the cache" in words and "<b>memory</b>" in words
    assert "at least 1.65\u00a0ms instead of 3.19\u00a0ms" in words
    assert {"dense, measured", "flash, measured", "lowrank, measured"} <= set(traces(at))


def test_an_encoder_has_no_next_token(open_app: Open) -> None:
    at = open_app("roofline", **{"p.roofline_mode": "decode"})
    assert "At batch 8" in html(at)


def test_a_measured_setting_is_loaded_with_its_star(open_app: Open) -> None:
    at = open_app("roofline", model="bert-base")
    menu = at.selectbox(key="w_roofline_shape")
    option = next(text for text in menu.options if "32 x 512" in text and "40,240,240" in text)
    menu.set_value(option).run()
    assert not at.exception
    query = link(at)
    assert (query["batch"], query["seq"], query["dtype"]) == ("32", "512", "bf16") and "240" in query["plan"]
    assert {"dense, measured", "flash, measured", "lowrank, measured"} <= set(traces(at))
    assert "REPLAY · H200" in html(at)


def test_this_machine_can_be_measured(open_app: Open, desk: Desk) -> None:
    at = open_app("roofline", **{"p.roofline_gpu": "L4, data sheet"})
    at.button(key="run_ceilings").click().run()
    assert desk.jobs.requests["job0"] == CeilingsRequest("fp32")
    desk.jobs.finish("job0", MachineCeiling("2026-11-20T10:00:00+00:00", fakes.MACHINE, "fp32", 1e11, 2e10))
    at.run()
    assert not at.exception
    assert at.selectbox(key="w_roofline_gpu").value == "CPU, 2 cores, measured here"
    assert "on CPU, 2 cores" in html(at) and "MEASURED, 20 Nov 2026" in html(at)
    at.selectbox(key="w_roofline_gpu").set_value("H200, measured").run()
    assert "on an H200" in html(at)


def test_what_a_hub_model_holds_is_not_known_yet(open_app: Open) -> None:
    at = open_app("roofline", model="someone/some-model")
    assert not at.exception and "not known yet" in html(at)


def test_a_model_of_shared_factors_is_counted(open_app: Open) -> None:
    at = open_app("roofline", method="basis_sharing")
    assert not at.exception and len(charts(at)) == 2
