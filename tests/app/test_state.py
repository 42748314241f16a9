"""Settings to URL and back, and what a link may do wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.state import DTYPES, Settings, answers, from_query, settings_of, to_query
from flashsvd.ranks import RankPlan
from tests.app import fakes

METHODS = ("svd", "whiten")
WORDS = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)

settings = st.builds(
    Settings,
    model=WORDS,
    method=st.sampled_from(METHODS),
    keep=st.integers(1, 100).map(lambda percent: percent / 100),
    plan=st.none() | WORDS,
    batch=st.integers(1, 65_536),
    seq=st.integers(1, 65_536),
    dtype=st.sampled_from(DTYPES),
    per_head=st.booleans(),
)


@given(settings)
def test_a_link_brings_back_the_settings(wanted: Settings) -> None:
    found, problems = from_query(to_query(wanted), Settings(keep=wanted.keep), METHODS)
    assert found == wanted and problems == []


@given(
    st.dictionaries(
        st.sampled_from(["model", "method", "keep", "plan", "batch", "seq", "dtype", "heads", "x"]),
        st.text(max_size=40),
    )
)
def test_any_link_is_read(query: dict[str, str]) -> None:
    found, problems = from_query(query, Settings(), METHODS)
    assert 0 < found.keep <= 1 and found.batch >= 1 and found.seq >= 1
    assert found.dtype in DTYPES and found.method in METHODS
    assert all("\n" not in line or "\n" in "".join(query.values()) for line in problems)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"keep": "0"}, "keep"),
        ({"keep": "nan"}, "keep"),
        ({"batch": "0"}, "batch"),
        ({"batch": "99999999999999999999"}, "batch"),
        ({"seq": "-1"}, "seq"),
        ({"dtype": "fp8"}, "dtype"),
        ({"method": "magic"}, "method"),
        ({"heads": "half"}, "heads"),
    ],
)
def test_each_bad_value_is_one_line_and_its_default(query: dict[str, str], words: str) -> None:
    found, problems = from_query(query, Settings(), METHODS)
    assert found == Settings() and len(problems) == 1 and words in problems[0]


def test_a_run_answers_its_own_settings_and_no_others() -> None:
    result = fakes.comparison(0.5)
    own = settings_of(result)
    assert own == Settings()
    assert answers(result, own, own.rank_plan(fakes.SHAPE))
    other = Settings(keep=0.4)
    assert not answers(result, other, other.rank_plan(fakes.SHAPE))
    assert not answers(result, Settings(batch=9), own.rank_plan(fakes.SHAPE))


def test_settings_of_a_run_with_its_own_plan_carry_its_text() -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.qkv: 25 L2.q.h3: 16")
    own = settings_of(fakes.comparison(plan=plan))
    assert own.plan == plan.to_text() and own.rank_plan(fakes.SHAPE) == plan


def test_the_app_never_imports_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, app, app.components\n"
        "for package in (app, app.components):\n"
        "    for entry in pkgutil.iter_modules(package.__path__):\n"
        "        if entry.name not in ('workbench', 'views'):\n"
        "            importlib.import_module(f'{package.__name__}.{entry.name}')\n"
        "import flashsvd.jobs, flashsvd.store, flashsvd.recording\n"
        "from flashsvd.figures import curve, grid, spectrum, timeline\n"
        "from flashsvd.methods import methods; methods()\n"
        "heavy = {'torch', 'transformers', 'triton'} & set(sys.modules)\n"
        "print(sorted(heavy)); sys.exit(bool(heavy))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_method_that_makes_layers_share_plans_for_its_groups() -> None:
    plan = Settings(method="basis_sharing", keep=0.4).rank_plan(fakes.SHAPE)
    q, down = plan.shape.slot(0, "q"), plan.shape.slot(0, "down")
    assert (q.sharing, q.units, down.sharing) == (2, 1, 1)
    assert plan.keep <= 0.4
