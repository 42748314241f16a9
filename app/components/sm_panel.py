"""The panel of programs on multiprocessors: measured here, or replayed from a recording that ships."""

from __future__ import annotations

import streamlit as st

from app import services, work
from app.components import charts, jobs, markup
from app.evidence import Badge
from app.words import when
from flashsvd.errors import FlashSVDError
from flashsvd.figures.tiles_sm import sm_chart
from flashsvd.gpus import gpu_of_device
from flashsvd.onchip.calls import KERNELS, KernelCall
from flashsvd.onchip.sm_numbers import SmNumbers, frame, numbers, verdict
from flashsvd.onchip.sm_trace import SmTrace, difference
from flashsvd.onchip.trace_request import TraceRequest
from flashsvd.results import Quantiles

_TITLE = "Programs on the multiprocessors, measured"


def sm_panel(call: KernelCall, gpu_name: str) -> None:
    """Time across, multiprocessors down, one bar per program; the numbers beside it."""
    live = _measured_here(call)
    problem, found = "", live
    if found is None:
        try:
            found = services.sm_traces().find(call, gpu_name)
        except FlashSVDError as error:
            problem = str(error)
    if found is None:
        markup.head(_TITLE, "each program from its start to its end, on the multiprocessor that it ran on")
        if problem:
            markup.notice(problem, error=True)
        else:
            markup.empty(
                f"No recording of {KERNELS[call.kernel].title} yet",
                "On a machine with a GPU, python -m flashsvd.onchip.trace writes one: it runs the kernel with a clock "
                "at the start and the end of every program.",
            )
        _measure_button(call)
        return
    picture, words = st.columns([66, 34], gap="medium", vertical_alignment="top")
    with picture:
        markup.head(_TITLE, _about(found, call), _badge(found, live=live is not None))
        charts.chart(
            sm_chart(found, mode=markup.mode()),
            key="tiles_sm",
            name="Programs on multiprocessors",
            data=frame(found),
        )
    with words:
        counted = numbers(found)
        first, second = check_words(found, counted)
        st.html(f'<div class="fs-stair"><b>{first}</b></div><div class="fs-muted">{second}</div>')
        markup.numbers(cells(found, counted))
        markup.muted(overhead_words(found), "fs-foot")
        _measure_button(call)


def check_words(trace: SmTrace, found: SmNumbers) -> tuple[str, str]:
    """The prediction of occupancy against what the hardware did, and what that means."""
    words, predicted = verdict(trace, found)
    shipped, limiter = trace.predicted(trace.plain), trace.predicted().limiter
    first = f"Predicted {predicted} per SM, seen {found.seen}."
    second = {
        "as predicted": f"The hardware held as many programs to a multiprocessor as its {limiter} can.",
        "too few programs": f"{found.programs:,} programs do not fill {found.sm_count} multiprocessors any fuller.",
        "fewer than predicted": "The hardware held fewer: programs were done before all places were taken.",
        "more than predicted": "The hardware held more: the rules of occupancy are wrong here.",
    }[words]
    if shipped.blocks != predicted:
        second += f" Without probes it would be {shipped.blocks}."
    return first, second


def cells(trace: SmTrace, found: SmNumbers) -> list[tuple[str, str, str]]:
    """(label, value, note) of the numbers beside the picture."""
    spread = f"{found.least} to {found.most}" if found.most > found.least else f"{found.most}"
    return [
        (
            "Programs per SM",
            spread,
            f"median {found.median:g}, {found.used} of {found.sm_count} SMs",
        ),
        ("Makespan", _us(found.makespan_ns), f"{found.programs:,} of {_us(found.program_ns)}"),
        ("SMs busy", f"{100 * found.busy:.0f} %", "of their time"),
        ("Tail", _us(found.tail_ns), "after the first idle SM"),
    ]


def overhead_words(trace: SmTrace) -> str:
    """What the clocks cost, and whether they changed anything."""
    same = "equal to the bit" if trace.error == 0 else f"equal within {trace.error:.0e}"
    cost = 100 * trace.overhead
    return (
        f"Clocks cost {cost:+.1f} %: {_ms(trace.instrumented_ms)} with, {_ms(trace.plain_ms)} without, in turn, "
        f"{trace.repeats} of each. Outputs {same}; {trace.instrumented.registers} registers for "
        f"{trace.plain.registers}. The timer counts in {trace.timer_step_ns} ns."
    )


def _measured_here(call: KernelCall) -> SmTrace | None:
    found = st.session_state.get("results", {}).get(TraceRequest(call))
    return found if isinstance(found, SmTrace) else None


def _about(trace: SmTrace, call: KernelCall) -> str:
    other = difference(trace.call, call)
    exact = f"rank {call.rank}, {call.dtype}" if call.rank else f"dense heads, {call.dtype}"
    return f"{trace.gpu}, {when(trace.created)} · {f'nearest: {other}' if other else exact}"


def _badge(trace: SmTrace, *, live: bool) -> Badge:
    return Badge("LIVE" if live else "REPLAY", f"{trace.machine.label}, {when(trace.created)}")


def _measure_button(call: KernelCall) -> None:
    """Where the worker has a GPU whose multiprocessors are known."""
    if "trace" in work.active():
        jobs.panel("trace")
        return
    accelerator = jobs.accelerator()
    if accelerator is None or gpu_of_device(accelerator) is None:
        return
    st.button(
        "Measure here",
        key="run_trace",
        width="stretch",
        help=f"Runs the kernel with random operands on the {accelerator}, with a clock in every program: seconds.",
        on_click=work.start,
        args=(TraceRequest(call),),
    )


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e3:.1f} µs"


def _ms(times: Quantiles) -> str:
    """A median, and from the 20th to the 80th percentile."""
    return f"{1e3 * times.p50:.1f} µs ({1e3 * times.p20:.1f} to {1e3 * times.p80:.1f})"
