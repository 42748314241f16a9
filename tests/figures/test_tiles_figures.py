"""Pictures of the Tiles page: what they show is what they were given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flashsvd.figures import theme
from flashsvd.figures.tiles_occupancy import occupancy_bars
from flashsvd.figures.tiles_program import program_tiles, role_colours
from flashsvd.figures.tiles_stairs import staircase
from flashsvd.onchip.fullness import Fullness
from flashsvd.onchip.programs import Held, Moment, Part
from flashsvd.onchip.stairs import Stair

ROWS = (
    Fullness("T4", 0, 32, 0, "", 0, 0, 65536, 0, 0, 0.0, 0.0, "has no bf16 <instructions>"),
    Fullness("A10", 8, 48, 2, "registers", 255, 34880, 101376, 112, 300, 2.08, 0.08),
    Fullness("H200", 16, 64, 4, "shared memory", 120, 73856, 232448, 0, 256, 0.48, 0.48),
)
MOMENT = Moment(
    (
        Part("P", ("M", "R1"), (640, 64), (64, 64), "left"),
        Part("U1ᵀ", ("R1", "D"), (64, 320), (64, 32), "top"),
        Part("t", ("M", "D"), (640, 320), (64, 32), "middle", on_chip=True),
        Part("V2", ("R2", "D"), (64, 320), (64, 32), "bottom"),
        Part("S", ("M", "R2"), (640, 64), (64, 64), "right"),
    ),
    (
        Held("P", (3, 3), (0, 0), "kept"),
        Held("U1ᵀ", (0, 0), (7, 7), "read"),
        Held("t", (3, 3), (7, 7), "made"),
        Held("V2", (0, 0), (7, 7), "read"),
        Held("S", (3, 3), (0, 0), "kept"),
    ),
    "tokens 193 to 256 of 640",
    "words",
)
STEPS = (Stair(96, 96, 0.0, 16, 64, "registers"), Stair(112, 128, 0.125, 12, 64, "shared memory"))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_occupancy_has_a_bar_or_a_reason_for_every_gpu(mode: str) -> None:
    figure = occupancy_bars(ROWS, chosen="H200", mode=mode)
    bars = figure.data[1]
    assert list(bars.y) == ["A10", "H200"] and list(bars.x) == pytest.approx([8 / 48, 0.25])
    assert list(bars.marker.color) == [theme.palette(mode).dense, theme.palette(mode).flash]
    words = " ".join(note.text for note in figure.layout.annotations)
    assert "&lt;instructions&gt;" in words and "<instructions>" not in words
    assert "8/48" in words and "spills 112 B" in words and "2.1 waves" in words and "120 reg" in words
    assert "the last 48 % full" in bars.customdata[1]
    assert list(figure.layout.yaxis.categoryarray) == ["T4", "A10", "H200"]


def test_words_beside_the_bars_have_room() -> None:
    """A row that spills says more than others, and its last words were cut."""
    spilling = ROWS[1]
    calm = replace(spilling, spill_bytes=0)
    wide, narrow = (occupancy_bars((row,), chosen=row.gpu).layout.margin.r for row in (spilling, calm))
    words = f"{spilling.registers} reg · 999 KiB · spills 112 B · 2.1 waves"
    assert spilling.spill_bytes and wide > narrow and wide >= 104 + 5 * len(words)


def test_a_program_colours_just_what_it_holds() -> None:
    figure = program_tiles(MOMENT)
    found = {}
    for part, trace in zip(MOMENT.parts, figure.data, strict=True):
        found[part.name] = [
            (i, j, value) for i, row in enumerate(trace.z) for j, value in enumerate(row) if value
        ]
    assert found["P"] == [(3, 0, 1)] and found["S"] == [(3, 0, 1)]
    assert found["U1ᵀ"] == [(0, 7, 2)] and found["V2"] == [(0, 7, 2)] and found["t"] == [(3, 7, 3)]
    assert len(role_colours("dark")) == 3


def test_many_tiles_are_drawn_in_few_cells_and_one_stays_one() -> None:
    part = Part("t", ("M", "D"), (64 * 1000, 32 * 344), (64, 32), "middle", on_chip=True)
    for at in (0, 499, 999):
        now = Moment((part,), (Held("t", (at, at), (343, 343), "made"),), "", "")
        (trace,) = program_tiles(now).data
        cells = [value for row in trace.z for value in row]
        assert len(cells) <= 18 * 26 and sum(value == 3 for value in cells) == 1


def test_stairs_show_warps_and_percent() -> None:
    figure = staircase(STEPS, rank=112)
    warps, padding = figure.data[:2]
    assert list(warps.y) == [16, 12] and list(padding.y) == [0.0, 12.5]
    assert "rank 112 pads to 128" in padding.customdata[1]
    assert any("rank 112" in note.text for note in figure.layout.annotations)
    assert len(staircase(STEPS).data) == 2
    refused = Stair(512, 0, 0.0, None, 0, "", "too large")
    assert len(staircase((*STEPS, refused)).data[0].x) == 2
