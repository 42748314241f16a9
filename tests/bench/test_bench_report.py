"""The Markdown table of bench recordings: what it says, what it refuses to say, and that the README's is this one."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_points import MACHINE, PLACE, saved, saved_decode, saved_prefill

from flashsvd import recording
from flashsvd.bench.report import (
    DECODERS,
    ENCODERS,
    SECTIONS,
    between_markers,
    framed,
    merged_commands,
    read_all,
    report,
    sections_of,
    with_report,
)
from flashsvd.bench.saved import bundled_benches, read_points
from flashsvd.errors import InputError
from flashsvd.paths import assets

BEGIN, END = ENCODERS.begin, ENCODERS.end


def _table(text: str) -> list[dict[str, str]]:
    """The rows of all tables, by heading."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    found = []
    headings: list[str] = []
    for cells in lines:
        if cells[0].startswith("B x "):
            headings = cells
        elif cells[0] != "---":
            found.append(dict(zip(headings, cells, strict=True)))
    return found


def test_a_row_has_medians_memory_and_ratios_over_the_right_baselines() -> None:
    text = report([saved()])
    assert _table(text) == [
        {
            "B x S": "32 x 512",
            "ranks": "(40,240,240)",
            "dense ms": "8.00",
            "dense compiled ms": "7.00",
            "low-rank ms": "11.00",
            "low-rank compiled ms": "6.90",
            "flash ms": "5.00",
            "flash graph ms": "3.50",
            "flash speed-up": "1.40x",
            "graph speed-up": "2.00x",
            "dense MiB": "240.0",
            "flash MiB": "60.0",
            "less memory": "4.00x",
        }
    ]
    assert text.startswith("**bert-base**, bf16, H200\n\n| B x S |")
    assert (
        "Measured on NVIDIA H200, driver 580.1, torch 2.11.0, triton 3.6.0, transformers 5.17.0, flashsvd "
        in text
    )
    assert "2026-01-02 (UTC), ceilings there: bf16 product 790 TFLOP/s, copy 4.3 TB/s." in text
    assert text.endswith(f"```\n{saved().point.command}\n```")


@pytest.mark.parametrize(
    ("red", "refused"),
    [
        ("flash", {"flash speed-up", "less memory"}),
        ("flash-graph", {"graph speed-up"}),
        ("dense-compile", {"flash speed-up", "graph speed-up"}),
        ("dense", {"less memory"}),
        ("lowrank", set()),
    ],
)
def test_a_ratio_of_a_wrong_output_is_not_shown(red: str, refused: set[str]) -> None:
    text = report([saved(red=red)])
    (cells,) = _table(text)
    ratios = {"flash speed-up", "graph speed-up", "less memory"}
    assert {name for name in ratios if cells[name] == "–"} == refused
    assert sum("(wrong)" in cell for cell in cells.values()) == 1
    assert f"- 32 x 512, (40,240,240): {red} is wrong: error 5.0e-01, at most 2.0e-03 passes" in text


def test_a_point_that_failed_is_a_row_of_dashes_and_a_reason() -> None:
    text = report([saved(failure="OutOfMemoryError: CUDA out of memory")])
    (cells,) = _table(text)
    assert set(cells.values()) == {"32 x 512", "(40,240,240)", "–"}
    assert "- 32 x 512, (40,240,240): OutOfMemoryError: CUDA out of memory" in text


def test_a_row_that_failed_says_why_and_one_not_asked_for_is_a_dash() -> None:
    whole = saved().point
    rows = tuple(row for row in whole.rows if row.name != "lowrank")
    failed = replace(rows[1], status="failed", reason="RuntimeError: no compiler", latency_ms=None, gate=None)
    fewer = replace(saved(), point=replace(whole, rows=(rows[0], failed, *rows[2:])))
    text = report([fewer, saved(seq=1024)])
    cells, _ = _table(text)
    assert cells["dense compiled ms"] == cells["low-rank ms"] == "–" and cells["dense ms"] == "8.00"
    assert "dense-compile failed: RuntimeError: no compiler" in text and "lowrank failed" not in text
    # A column that nobody asked for is not there.
    (alone,) = _table(report([fewer]))
    assert cells.keys() - alone.keys() == {"low-rank ms"}


def test_points_are_grouped_and_sorted_whatever_order_they_came_in() -> None:
    elsewhere = replace(PLACE, machine=replace(MACHINE, accelerator="NVIDIA A100"))
    points = [
        saved(model="bert-large", created="2026-01-05T00:00:00+00:00"),
        saved(seq=4096, batch=4),
        saved(ranks="8,192,192"),
        saved(ranks="32,192,192"),
        saved(seq=128),
        saved(place=elsewhere),
    ]
    text = report(points)
    assert text == report(points[::-1])
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert titles == ["**bert-base**, bf16, A100", "**bert-base**, bf16, H200", "**bert-large**, bf16, H200"]
    assert [(cells["B x S"], cells["ranks"]) for cells in _table(text)] == [
        ("32 x 512", "(40,240,240)"),
        ("32 x 128", "(40,240,240)"),
        ("32 x 512", "(32,192,192)"),
        ("32 x 512", "(8,192,192)"),
        ("4 x 4096", "(40,240,240)"),
        ("32 x 512", "(40,240,240)"),
    ]
    assert text.count("Measured on NVIDIA A100") == text.count("Measured on NVIDIA H200") == 1
    assert "2026-01-02 to 2026-01-05 (UTC)" in text


def test_of_equal_points_the_newest_counts() -> None:
    newer = saved(created="2027-01-01T00:00:00+00:00", red="flash")
    for points in ([newer, saved()], [saved(), newer]):
        assert report(points) == report([newer])


def test_ceilings_of_several_runs_are_a_range() -> None:
    slower = replace(PLACE, ceilings=replace(PLACE.ceilings, bf16_tflops=781.2))
    assert "bf16 product 781 to 790 TFLOP/s" in report([saved(), saved(seq=128, place=slower)])


def _expanded(command: str) -> set[tuple[str, ...]]:
    """Every setting that a command measures, as (ranks, batch, seq, dtype)."""
    found = shlex.split(command)
    value = {found[index]: found[index + 1] for index in range(6, len(found) - 1, 2)}
    lists = [
        value["--ranks"].split(":"),
        *(value[f"--{name}"].split(",") for name in ("batch", "seq", "dtype")),
    ]
    settings: set[tuple[str, ...]] = {()}
    for choices in lists:
        settings = {(*one, choice) for one in settings for choice in choices}
    return settings


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["40,240,240", "32,192,192", "8,8,8"]),
            st.sampled_from([4, 8, 32]),
            st.sampled_from([128, 512, 4096]),
            st.sampled_from(["bf16", "fp16"]),
        ),
        min_size=1,
    )
)
def test_the_commands_repeat_every_point_once_and_nothing_else(
    settings: set[tuple[str, int, int, str]],
) -> None:
    points = [
        saved(ranks=ranks, batch=batch, seq=seq, dtype=dtype) for ranks, batch, seq, dtype in sorted(settings)
    ]
    commands = merged_commands(points)
    expanded = [one for command in commands for one in sorted(_expanded(command))]
    assert sorted(expanded) == sorted(tuple(map(str, one)) for one in settings)


def test_a_whole_grid_is_one_command() -> None:
    points = [saved(ranks=ranks, seq=seq) for seq in (128, 512) for ranks in ("40,240,240", "32,192,192")]
    (command,) = merged_commands(points)
    assert "--ranks 40,240,240:32,192,192 " in command and "--seq 128,512 " in command


def test_the_markers_frame_what_is_exchanged() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest\n"
    new = with_report(text, "README.md", "| new |")
    assert new == f"# Title\n{BEGIN}\n| new |\n{END}\nrest\n"
    assert between_markers(new, "README.md") == framed("| new |")
    assert with_report(new, "README.md", "| new |") == new


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", f"{BEGIN} once, it is there 0 times"),
        (f"{BEGIN}\n", f"{END} once, it is there 0 times"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n", f"{BEGIN} once, it is there 2 times"),
        (f"{BEGIN}\n{END}\n{END}\n", f"{END} once, it is there 2 times"),
        (f"{END}\n{BEGIN}\n", "swap them"),
    ],
)
def test_markers_that_are_missing_or_there_twice_are_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        between_markers(text, "README.md")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_readme_shows_what_is_bundled() -> None:
    readme = (assets().parent / "README.md").read_text(encoding="utf-8")
    points = read_all(bundled_benches())
    for section in sections_of(points):
        made = framed(report(points, section))
        shown = between_markers(readme, "README.md", section)
        assert shown == made, "run python -m flashsvd report --write README.md"


def test_without_recordings_the_table_says_so() -> None:
    assert report([]) == "No bench recordings are bundled yet."


def test_the_two_kinds_of_recordings_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(recording.bundled()) & set(bundled_benches())
    for path in bundled_benches():
        assert read_points(path)
        with pytest.raises(InputError, match="flashsvd-bench-recording"):
            recording.read(path)
    (tmp_path / "recordings" / "bench").mkdir(parents=True)
    (tmp_path / "recordings" / "bench" / "a.parquet").touch()
    (tmp_path / "recordings" / "b.parquet").touch()
    for module in ("flashsvd.recording", "flashsvd.bench.saved"):
        monkeypatch.setattr(f"{module}.assets", lambda: tmp_path)
    assert [path.name for path in recording.bundled()] == ["b.parquet"]
    assert [path.name for path in bundled_benches()] == ["a.parquet"]


def test_a_decode_row_has_its_times_and_the_graphs_numbers() -> None:
    text = report([saved_decode()])
    assert text.startswith("**llama-2-7b**, bf16, H200, decode\n\n| B x context |")
    assert _table(text) == [
        {
            "B x context": "1 x 512",
            "ranks": "`keep 0.5, whole`",
            "dense ms": "25.00",
            "dense static compiled ms": "6.00",
            "dense graph ms": "4.00",
            "low-rank ms": "22.00",
            "low-rank static compiled ms": "5.90",
            "flash ms": "9.00",
            "flash graph ms": "2.00",
            "rank cache graph ms": "2.10",
            "tokens/s": "500",
            "launches": "1",
            "floor": "70%",
            "speed-up": "3.00x",
            "over dense graph": "2.00x",
            "dense GiB": "12.6",
            "flash GiB": "6.6",
            "cache GiB": "0.3",
            "rank cache GiB": "0.2",
        }
    ]
    assert "Decode: medians of one token" in text and "Prefill" not in text
    assert text.endswith(f"```\n{saved_decode().point.command}\n```")


def test_without_a_graph_the_numbers_are_those_of_flash() -> None:
    whole = saved_decode().point
    rows = tuple(
        replace(row, status="left out", reason="CUDA graphs need a GPU", latency_ms=None)
        if "graph" in row.name
        else row
        for row in whole.rows
    )
    (cells,) = _table(report([replace(saved_decode(), point=replace(whole, rows=rows))]))
    assert (cells["flash graph ms"], cells["flash ms"], cells["tokens/s"]) == ("–", "9.00", "111")


def test_a_prefill_row_has_memory_and_ratios() -> None:
    (cells,) = _table(report([saved_prefill()]))
    assert cells == {
        "B x S": "8 x 2048",
        "ranks": "`keep 0.5, whole`",
        "dense ms": "8.00",
        "dense compiled ms": "7.00",
        "dense one by one ms": "9.00",
        "low-rank ms": "11.00",
        "low-rank compiled ms": "6.90",
        "flash ms": "5.00",
        "tokens/s": "3276800",
        "speed-up": "1.60x",
        "dense MiB": "240.0",
        "flash MiB": "60.0",
        "less memory": "4.00x",
    }


def test_greedy_tokens_that_differ_are_told() -> None:
    text = report([saved_decode(red="flash-graph", differences=3)])
    (cells,) = _table(text)
    assert cells["flash graph ms"] == "2.00 (wrong)" and cells["speed-up"] == cells["over dense graph"] == "–"
    assert "flash-graph is wrong: 3 greedy tokens differ by more than rounding" in text


def test_encoders_and_decoders_have_sections_of_their_own() -> None:
    points = [saved_decode(), saved(), saved_prefill(), saved_decode(batch=16, context=4096)]
    encoders, decoders = (report(points, section) for section in SECTIONS)
    assert report(points) == f"{encoders}\n\n{decoders}"
    assert encoders == report([saved()]) and "bert-base" not in decoders
    titles = [line for line in decoders.splitlines() if line.startswith("**")]
    assert titles == ["**llama-2-7b**, bf16, H200, decode", "**llama-2-7b**, bf16, H200, prefill"]
    assert [cells.get("B x context") or cells["B x S"] for cells in _table(decoders)] == [
        "1 x 512",
        "16 x 4096",
        "8 x 2048",
    ]
    assert decoders.count("– where a run failed") == 1 and decoders.count("Measured on") == 1
    commands = merged_commands([saved_decode(), saved_decode(batch=16), saved_decode(context=4096)])
    assert len(commands) == 2


def test_each_section_has_markers_of_its_own() -> None:
    assert sections_of([saved()]) == [ENCODERS] == sections_of([])
    assert sections_of([saved_prefill(), saved()]) == [ENCODERS, DECODERS]
    text = f"{ENCODERS.begin}\n{ENCODERS.end}\n"
    both = f"{text}{DECODERS.begin}\n{DECODERS.end}\n"
    changed = with_report(both, "PAGE.md", "| new |", DECODERS)
    assert changed == f"{text}{DECODERS.begin}\n| new |\n{DECODERS.end}\n"
    with pytest.raises(InputError, match="decoders:begin --> once, it is there 0 times"):
        between_markers(text, "PAGE.md", DECODERS)
