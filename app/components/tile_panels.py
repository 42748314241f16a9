"""The panels of the Tiles page: occupancy on every GPU, the rank as a staircase, one program's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd
import streamlit as st

from app import choices, work
from app.components import charts, jobs, markup
from app.tile_subject import Subject
from flashsvd.errors import format_bytes
from flashsvd.figures.tiles_occupancy import occupancy_bars, waves_words
from flashsvd.figures.tiles_program import program_tiles, role_colours
from flashsvd.figures.tiles_stairs import staircase
from flashsvd.gpus import GPUS, gpu
from flashsvd.onchip.calls import KERNELS, most_rank
from flashsvd.onchip.compiled import Compiled, exact
from flashsvd.onchip.fullness import frame, fullness
from flashsvd.onchip.programs import moment, programs, steps
from flashsvd.onchip.request import CompileRequest
from flashsvd.onchip.stairs import sentence, stairs

_LEAST_STAIRS = 2


def gpu_picker(current: str, default: str) -> None:
    """The GPU that the page looks at."""
    names = [one.name for one in GPUS]
    st.session_state["w_tiles_gpu"] = current
    st.selectbox(
        "GPU",
        names,
        key="w_tiles_gpu",
        label_visibility="collapsed",
        help="The GPU that the staircase and the program are shown for; it need not be here.",
        on_change=choices.keep,
        args=("tiles_gpu", "w_tiles_gpu", default),
    )


def occupancy_panel(subject: Subject) -> None:
    """One bar per GPU."""
    call = subject.call
    rows = fullness(call, subject.find)
    title, pick = st.columns([66, 34], vertical_alignment="top", wrap=False)
    with title:
        markup.head("Occupancy", _compiled_for(subject), subject.badge)
    with pick:
        gpu_picker(subject.gpu, subject.default_gpu)
    figure = occupancy_bars(rows, chosen=subject.gpu, mode=markup.mode())
    charts.chart(figure, key="tiles_occupancy", name="Occupancy on every GPU", data=frame(rows))
    if "compile" in work.active():
        jobs.panel("compile")
        return
    row = subject.row
    known = row is not None and exact(row, call)
    st.button(
        "Compile again here" if known else "Compile for just these sizes",
        key="run_compile",
        width="stretch",
        help="Triton compiles the kernel for every GPU of the list, which need not be here. About 2 s each.",
        on_click=work.start,
        args=(request_of(subject),),
    )


def request_of(subject: Subject) -> CompileRequest:
    """The call for every GPU; its ranks as well, where too few of them are known for a staircase."""
    call = subject.call
    seen = stairs(call, most_rank(call), lambda one: subject.find(one, subject.gpu))
    swept = len({stair.padded for stair in seen}) < _LEAST_STAIRS and call.rank > 0
    names = tuple(one.name for one in GPUS)
    return CompileRequest(call, names, subject.gpu if swept else "", most_rank(call) if swept else 0)


def _compiled_for(subject: Subject) -> str:
    row, call = subject.row, subject.call
    unit = "keys" if call.kernel in ("attention", "rank_space", "rank_space_hopper") else "tokens"
    if row is None or exact(row, call):
        at = call
        lead = "compiled for"
    else:
        at = row.call
        lead = "nearest"
    size = at.seq if unit == "keys" else at.rows
    ranks = (
        "dense heads"
        if not at.rank
        else f"rank {at.rank}" + (f" and {at.rank_out}" if at.rank_out not in (0, at.rank) else "")
    )
    return f"warps per SM · {lead} {ranks}, {size:,} {unit}"


def stairs_panel(subject: Subject) -> None:
    """The rank swept on the chosen GPU."""
    call = subject.call
    picture, words = st.columns([66, 34], gap="medium", vertical_alignment="top")
    if not call.rank:
        markup.head("Rank is a staircase", "these heads are dense: there is no rank to pad", subject.badge)
        return
    most = max(most_rank(call), subject.rank)
    found = stairs(call, most, lambda one: subject.find(one, subject.gpu))
    with picture:
        swept = "both ranks alike" if call.rank_out else "the rank"
        markup.head("Rank is a staircase", f"{subject.gpu}, {swept} swept", subject.badge)
        if any(stair.warps is not None for stair in found):
            figure = staircase(found, rank=subject.rank, mode=markup.mode(), height=160)
            data = pd.DataFrame([vars(stair) for stair in found])
            charts.chart(figure, key="tiles_stairs", name="Rank staircase", data=data)
        else:
            line = found[0].refusal if found else "These sizes were not compiled yet."
            markup.empty(f"No staircase on {subject.gpu}", line)
    with words:
        first, second = sentence(found, subject.rank)
        lead, _, tail = first.partition(": ")
        st.html(
            f'<div class="fs-stair">{escape(lead)}{": " if tail else ""}<b>{escape(tail)}</b></div>'
            f'<div class="fs-muted">{escape(second)}</div>'
        )
        _numbers(subject)


def _numbers(subject: Subject) -> None:
    row = subject.row
    found = row.occupancy if row is not None else None
    if row is None or found is None:
        return
    count = programs(row, subject.call)
    filled = row.waves(count)
    one = gpu(subject.gpu)
    cells = [
        ("Programs per SM", f"{found.blocks}", f"{row.warps} warps each, by {found.limiter}"),
        (
            "Waves",
            "none" if filled is None else waves_words(filled.waves).removesuffix(" waves"),
            f"{count:,} programs, {one.sm_count} SMs"
            if filled is None
            else f"last one {100 * filled.last_share:.0f} % full",
        ),
        ("Registers", f"{row.registers}", f"of {one.processor.max_registers_thread} a thread"),
        (
            "Spills",
            format_bytes(row.spill_bytes) if row.spill_bytes else "none",
            "a thread, to memory" if row.spill_bytes else "all sums stay in registers",
        ),
    ]
    markup.numbers(cells)


def program_panel(subject: Subject) -> None:
    """One program, scrubbed by its number and its step."""
    row, call = subject.row, subject.call
    if row is None or row.refusal:
        markup.head("One program", f"on {subject.gpu}", subject.badge)
        line = "These sizes were not compiled yet." if row is None else f"{subject.gpu}: {row.refusal}."
        markup.empty(f"No program on {subject.gpu}", line)
        return
    count = programs(row, call)
    words, picture = st.container(), st.container()
    with st.container(key="tiles_scrub"):
        labels = st.columns([15, 38, 9, 38], gap="small", vertical_alignment="center", wrap=False)
        with labels[0]:
            markup.muted("Program")
        with labels[1]:
            program = _slide("Program", "w_tiles_program", count)
        total = steps(row, call, program)
        with labels[2]:
            markup.muted("Step")
        with labels[3]:
            step = _slide("Step", "w_tiles_step", total)
    now = moment(row, call, program, step)
    with words:
        title = f"Program {program + 1:,} of {count:,}, step {step + 1:,} of {total:,}"
        markup.head(title, now.where, subject.badge, role_colours(markup.mode()))
    with picture:
        figure = program_tiles(now, mode=markup.mode(), height=204)
        data = pd.DataFrame([vars(one) for one in now.held])
        charts.chart(figure, key="tiles_program", name="Tiles of one program", data=data)
        markup.muted(now.words)
        _shared_gauge(row)


def _slide(label: str, key: str, count: int) -> int:
    """A number from 0, chosen from 1; it starts a third of the way, as does what no longer fits."""
    if count == 1:
        st.slider(label, 0, 1, 1, key=f"{key}_only", disabled=True, label_visibility="collapsed")
        return 0
    if not 1 <= int(st.session_state.get(key, 0)) <= count:
        st.session_state[key] = 1 + count // 3
    return int(st.slider(label, 1, count, key=key, label_visibility="collapsed")) - 1


def _shared_gauge(row: Compiled) -> None:
    limit = gpu(row.gpu).processor.shared_block_bytes
    share = min(1.0, row.shared_bytes / limit)
    st.html(
        f'<div class="fs-gauge"><i style="width:{100 * share:.1f}%"></i></div><div class="fs-foot">'
        f"{escape(format_bytes(row.shared_bytes))} of {escape(format_bytes(limit))} shared memory on "
        f"{escape(row.gpu)}</div>"
    )


def kernel_titles(names: Sequence[str]) -> dict[str, str]:
    """What the picker shows."""
    return {name: KERNELS[name].title for name in names}
