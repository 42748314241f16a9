"""Runs as files: tables, JSON that holds all, and one HTML file that is harmless and needs no network."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from flashsvd.errors import InputError
from flashsvd.results import TIMELINE_COLUMNS, Comparison
from flashsvd.runs.export import table, to_csv, to_file, to_parquet
from flashsvd.runs.html import command, html_table, page
from tests.app import fakes
from tests.runs import kept

EVIL = "<script>alert(1)</script>"


def evil() -> Comparison:
    """A run in which every text that a file may bring is a script."""
    result = kept.comparison()
    runs = tuple(
        dataclasses.replace(
            run,
            backend=EVIL,
            timeline=run.timeline.assign(op=EVIL, module=f"</script>{EVIL}"),
        )
        for run in result.runs
    )
    model = dataclasses.replace(result.model, name=EVIL)
    machine = dataclasses.replace(result.machine, cpu=EVIL, torch=EVIL, accelerator=f"</title>{EVIL}")
    return dataclasses.replace(result, model=model, machine=machine, method=EVIL, runs=runs)


def test_a_row_per_engine_and_per_point(tmp_path: Path) -> None:
    found = kept.keep(tmp_path, kept.comparison(), kept.curve(), name="a name")
    frame = table(found)
    assert frame["engine"].dropna().tolist() == ["dense", "lowrank", "flash"]
    assert len(frame) == 3 + 10 and set(frame["name"]) == {"a name"}
    flash = frame[frame["engine"] == "flash"].iloc[0]
    run = kept.comparison().run("flash")
    assert run is not None and flash["latency_p50_ms"] == run.latency_ms.p50
    assert flash["peak_activation_bytes"] == run.peak_activation_bytes and bool(flash["check_passed"])
    assert table(()).columns.tolist() == frame.columns.tolist()


def test_csv_and_parquet_hold_the_same_table(tmp_path: Path) -> None:
    found = kept.keep(tmp_path, kept.comparison(), kept.curve())
    csv, parquet = pd.read_csv(io.BytesIO(to_csv(found))), pd.read_parquet(io.BytesIO(to_parquet(found)))
    assert csv.columns.tolist() == parquet.columns.tolist() and len(csv) == len(parquet) == 13
    for name in ("keep", "score", "latency_p80_ms"):
        pd.testing.assert_series_equal(
            csv[name].astype(float), parquet[name].astype("Float64").astype(float), check_names=False
        )


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)"])
def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    found = kept.keep(tmp_path, kept.comparison(), name=name)
    assert pd.read_csv(io.BytesIO(to_csv(found)))["name"][0] == "'" + name


def test_json_holds_timelines(tmp_path: Path) -> None:
    data = json.loads(to_file(kept.keep(tmp_path, kept.comparison())))
    run = data["runs"][0]
    assert set(run["timelines"]) == {"dense", "lowrank", "flash"}
    assert set(run["timelines"]["flash"]) == set(TIMELINE_COLUMNS)


def test_html_of_one_run_a_pair_and_a_curve(tmp_path: Path) -> None:
    one, two, curve = kept.keep(tmp_path, kept.comparison(0.5), kept.comparison(0.3), kept.curve())
    single = page((one,)).decode()
    assert "4.1 MiB" in single and "REPLAY · CPU, 2 cores · 2026-11-12" in single
    assert "python -m flashsvd compare stdlib-bert" in single and single.count("Plotly.newPlot(") >= 2
    both = page((one, two)).decode()
    assert "B − A" in both and "Ranks that differ" in both and "by layer and op" in both
    assert "What the rank costs" in page((curve,)).decode()
    assert "B: accuracy" in page((curve, curve)).decode()
    for wrong in ((), (one, curve), (one, two, curve)):
        with pytest.raises(InputError, match="one run or two of one kind"):
            page(wrong)


def without_plotly(text: str) -> str:
    """The page but for the library's own code, which holds addresses and tags as strings."""
    from plotly.offline import get_plotlyjs

    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def test_html_asks_the_network_for_nothing(tmp_path: Path) -> None:
    found = kept.keep(tmp_path, kept.comparison(0.5), kept.comparison(0.3))
    for text in (page(found[:1]).decode(), page(found).decode()):
        rest = without_plotly(text)
        assert not re.search(r"""(src|href|action)\s*=|@import|url\(|<link|<iframe|<object|import\(""", rest)
        assert "default-src 'none'" in rest


def test_html_is_harmless_whatever_a_run_is_called(tmp_path: Path) -> None:
    found = kept.keep(tmp_path, evil(), kept.comparison(), name=f"</title></script>{EVIL}")
    for text in (page(found[:1]).decode(), page(found).decode(), page(found[::-1]).decode()):
        rest = without_plotly(text)
        assert "alert(1)" in rest and EVIL not in rest
        # Scripts are plotly's and the figures', and none is of the run's making.
        for script in re.findall(r"<script[^>]*>(.*?)</script>", rest, flags=re.DOTALL):
            assert not script or "Plotly" in script
        assert rest.count("<script") == rest.count("</script>")


def test_a_table_escapes_its_cells() -> None:
    text = html_table((EVIL,), ((EVIL, EVIL),), (EVIL,))
    assert "<script" not in text and text.count("&lt;script&gt;") == 5


def test_the_command_survives_a_shell() -> None:
    result = dataclasses.replace(kept.comparison(), model=dataclasses.replace(fakes.INFO, name="a; rm -rf ~"))
    assert "'a; rm -rf ~'" in command(result)
