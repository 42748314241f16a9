"""Opt-in tuning: what is chosen, when nothing is, and that the ops run what was chosen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tuned_calls import COMPILED, INTERPRETED, forget_calls

from flashsvd.kernels import HeadLayout, tuned_store, tuning
from flashsvd.kernels.tuned_store import Store
from flashsvd.kernels.tuning import Trial, choose, fields_of, key_of, stored_tiles

STORE = Store("Some GPU", "3.6.0")


@dataclass(frozen=True)
class Tiles:
    block: int
    stages: int = 2


@dataclass
class Kernel:
    """Fills its output with ones; `does` says what other tiles do, by their block."""

    does: dict[int, Callable[[torch.Tensor], object]] = field(default_factory=dict)
    us: dict[int, float] = field(default_factory=dict)
    out: torch.Tensor = field(default_factory=lambda: torch.zeros(100))
    timed: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    at: int = 0

    def trial(self, key: str = "k", blocks: Sequence[int] = (64, 128, 32)) -> Trial[Tiles]:
        return Trial("fake", key, tuple(map(Tiles, blocks)), self.out, self.start)

    def start(self, tiles: Tiles) -> Callable[[], object]:
        self.started.append(tiles.block)
        if tiles.block == 1:
            raise RuntimeError("PassManager::run failed")

        def run() -> None:
            self.at = tiles.block
            self.does.get(tiles.block, lambda out: out.fill_(1.0))(self.out)

        return run

    def clock(self, calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
        found = []
        for call in calls:
            call()
            self.timed.append(self.at)
            found.append(self.us.get(self.at, 10.0))
        return found

    def choose(self, key: str = "k", blocks: Sequence[int] = (64, 128, 32)) -> int:
        return choose(Tiles(64), lambda: self.trial(key, blocks), self.out, self.clock).block


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    tuning.forget()
    tuned_store.warn.cache_clear()
    yield
    tuning.forget()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning as on a GPU that is not capturing."""
    monkeypatch.setattr(tuning, "wanted", lambda tensor: True)
    monkeypatch.setattr(tuning, "store_of", lambda device: STORE)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.usefixtures("on")
def test_a_faster_candidate_is_chosen_and_stored() -> None:
    kernel = Kernel(us={128: 9.0, 32: 8.0})
    assert kernel.choose() == 32 and kernel.timed == [64, 128, 32]
    (entry,) = STORE.read().values()
    assert (entry.default_us, entry.chosen_us, entry.tiles) == (10.0, 8.0, {"block": 32, "stages": 2})
    assert tuning.met() == (entry,) and entry.gain == 0.2


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(("us", "chosen"), [(9.81, 64), (10.0, 64), (12.0, 64), (9.79, 128)])
def test_a_gain_under_two_percent_is_none(us: float, chosen: int) -> None:
    kernel = Kernel(us={128: us})
    assert kernel.choose(blocks=(64, 128)) == chosen
    assert next(iter(STORE.read().values())).tiles["block"] == chosen


WRONG: dict[str, Callable[[torch.Tensor], object]] = {
    "one element": lambda out: out.fill_(1.0)[7:8].fill_(1.01),
    "NaN": lambda out: out.fill_(1.0)[3:4].fill_(float("nan")),
    "infinity": lambda out: out.fill_(1.0)[3:4].fill_(float("inf")),
    "left unwritten": lambda out: out[:99].fill_(1.0),
    "nothing": lambda out: None,
}


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_candidate_is_discarded(wrong: str) -> None:
    kernel = Kernel({32: WRONG[wrong]}, {32: 1.0, 128: 9.0})
    assert kernel.choose() == 128 and kernel.timed == [64, 128]


@pytest.mark.usefixtures("on")
def test_one_that_is_wrong_now_and_then_is_discarded_too() -> None:
    runs = iter(range(9))
    kernel = Kernel({32: lambda out: out.fill_(1.0 if next(runs) < 2 else 2.0)}, {32: 1.0, 128: 9.0})
    assert kernel.choose() == 128 and 32 in kernel.timed


@pytest.mark.usefixtures("on")
def test_what_does_not_compile_or_run_is_discarded() -> None:
    def fails(out: torch.Tensor) -> None:
        raise ValueError("out of resource: shared memory")

    kernel = Kernel({32: fails}, {128: 5.0})
    assert kernel.choose(blocks=(64, 1, 32, 128)) == 128 and kernel.timed == [64, 128]


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_is_timed_where_the_default_tells_nothing(value: float) -> None:
    kernel = Kernel({64: lambda out: out.fill_(value)})
    assert kernel.choose() == 64 and not kernel.timed and STORE.read() == {}


@pytest.mark.usefixtures("on")
def test_no_memory_means_the_default() -> None:
    def exhausted() -> Trial[Tiles]:
        raise torch.OutOfMemoryError

    assert choose(Tiles(64), exhausted, torch.zeros(1)) == Tiles(64) and STORE.read() == {}


@pytest.mark.usefixtures("on")
def test_another_process_reads_what_was_stored() -> None:
    Kernel(us={32: 5.0}).choose()
    for forgets in (False, True):
        if forgets:
            tuning.forget()
        kernel = Kernel()
        assert kernel.choose() == 32 and not kernel.timed and not kernel.started
    assert Kernel().choose("another key") == 64 and len(STORE.read()) == 2


@pytest.mark.usefixtures("on")
def test_stored_tiles_that_would_not_be_tried_are_ignored() -> None:
    Kernel(us={32: 5.0}).choose()
    (entry,) = STORE.read().values()
    for tiles in ({"block": 96, "stages": 2}, {"block": 32}, {"block": 32.0, "stages": 2}, {}):
        STORE.add([replace(entry, tiles=tiles)])
        tuning.forget()
        kernel = Kernel(us={128: 5.0})
        assert kernel.choose() == 128 and kernel.timed
    assert stored_tiles(fields_of(Tiles(True)), [Tiles(1)]) is None


@pytest.mark.usefixtures("on")
def test_nothing_is_timed_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernel = Kernel(us={32: 5.0})
    assert kernel.choose() == 64 and not kernel.started and STORE.read() == {}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert kernel.choose() == 32
    # What is known already may be used.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernel.choose() == 32


@pytest.mark.usefixtures("on")
def test_a_single_candidate_is_not_timed() -> None:
    kernel = Kernel()
    assert kernel.choose(blocks=(64,)) == 64 and not kernel.started and not STORE.path.exists()


def test_a_damaged_store_is_a_warning_and_is_written_anew(on: None, caplog: pytest.LogCaptureFixture) -> None:
    STORE.path.parent.mkdir(parents=True)
    STORE.path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert Kernel(us={32: 5.0}).choose() == 32
    assert len(caplog.records) == 1 and len(STORE.read()) == 1


def test_tuning_is_off_by_default_and_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda = True

    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setattr(tuning, "interpreting", lambda: False)
    assert not tuning.wanted(OnGpu())  # type: ignore[arg-type]
    with tuning.switched_on():
        assert tuning.wanted(OnGpu()) and not tuning.wanted(torch.zeros(1))  # type: ignore[arg-type]
        monkeypatch.setattr(tuning, "interpreting", lambda: True)
        assert not tuning.wanted(OnGpu())  # type: ignore[arg-type]
    assert tuning.VARIABLE not in tuning.os.environ


@pytest.mark.parametrize("name", INTERPRETED)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is only on where there is no GPU")
def test_by_default_the_ops_touch_no_disk_and_time_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for method in ("read", "add", "_write"):
        monkeypatch.setattr(Store, method, never)
    monkeypatch.setattr(tuning, "tune", never)
    monkeypatch.setattr(tuning, "time_on_gpu", never)
    forget_calls()
    INTERPRETED[name]("interpret", "cpu")


@pytest.mark.parametrize("name", INTERPRETED)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is only on where there is no GPU")
def test_the_ops_run_what_was_chosen_and_pass_the_gate(
    name: str, on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted, with a clock for which the last candidate is the fastest. The call checks its own result."""

    def clock(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
        for call in calls:
            call()
        return [10.0 - i for i in range(len(calls))]

    monkeypatch.setattr(tuning, "time_on_gpu", clock)
    forget_calls()
    INTERPRETED[name]("interpret", "cpu")
    (entry,) = STORE.read().values()
    assert entry.chosen_us < entry.default_us
    monkeypatch.setattr(tuning, "tune", None)
    tuning.forget()
    forget_calls()
    INTERPRETED[name]("interpret", "cpu")
    assert tuning.met() == (entry,)
    forget_calls()


def test_keys_tell_calls_apart() -> None:
    key = functools.partial(key_of, torch.bfloat16)
    shared, own = HeadLayout((8, 8), shared=True), HeadLayout((8, 8))
    keys = {
        key(a=1),
        key(a=11),
        key(a=True),
        key(a=None),
        key(b=1),
        key_of(torch.float16, a=1),
        key(a=shared),
        key(a=own),
        key(a=HeadLayout((8,))),
        key(a=HeadLayout((8, 8, 16))),
        key(a=HeadLayout((8, 16, 8))),
    }
    assert len(keys) == 11 and not any("\n" in one for one in keys)


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMPILED)
def test_tuned_ops_pass_the_gate_and_are_timed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_calls()
    with tuning.switched_on():
        COMPILED[name](None, "cuda")
        entries = tuning.met()
        assert entries == tuple(tuning.store_of(torch.device("cuda")).read().values())
        # A second process finds all of it.
        monkeypatch.setattr(tuning, "tune", None)
        tuning.forget()
        forget_calls()
        COMPILED[name](None, "cuda")
        assert tuning.met() == entries
    forget_calls()


@pytest.mark.gpu
def test_a_capture_runs_the_default_and_stores_nothing() -> None:
    from flashsvd.kernels.norm import fused_norm

    x = torch.randn(64, 256, device="cuda")
    weight = torch.ones(256, device="cuda")
    expected = fused_norm(x, weight, None, 1e-5)
    forget_calls()
    graph, out = torch.cuda.CUDAGraph(), torch.empty_like(x)
    torch.cuda.synchronize()
    with tuning.switched_on(), torch.cuda.graph(graph):
        fused_norm(x, weight, None, 1e-5, out=out)
    graph.replay()
    assert torch.equal(out, expected) and not tuning.met()
    forget_calls()
