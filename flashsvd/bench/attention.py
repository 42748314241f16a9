"""`bench attention`: an attention sublayer with all four projections, dense and from factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from flashsvd.bench.attention_contestants import contestants
from flashsvd.bench.attention_sublayer import Sublayer, layer_plan
from flashsvd.bench.contest import Terms, run_contest
from flashsvd.bench.ops import BUDGET_SECONDS, cache_flush, check_fits, check_seed, check_sizes
from flashsvd.bench.rows import Baselines, Row, command_of
from flashsvd.errors import InputError
from flashsvd.kernels import HeadLayout
from flashsvd.kernels.attention.choice import prefill_choice
from flashsvd.measure.ceilings import Ceilings
from flashsvd.measure.fidelity import Outputs, judge
from flashsvd.models.load import pick_device, pick_dtype
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import GateReport

BASELINES = Baselines(latency="dense", peak="dense")
_STAGES = 3


@dataclass(frozen=True)
class AttentionRequest:
    """One point. rank is that of q, k and v per head; rank_out of o, by default the one that keeps the same share
    of its parameters. kv_heads: as many as heads unless given. causal, rotary: as in decoders."""

    batch: int = 32
    seq: int = 512
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int = 64
    rank: int = 32
    rank_out: int | None = None
    causal: bool = False
    rotary: bool = False
    dtype: str = "bf16"
    device: str = "auto"
    repeats: int = 50
    seed: int = 0

    bench = "attention"
    baselines = BASELINES

    def check(self) -> None:
        """Raises InputError for sizes, ranks or a dtype that cannot run."""
        sizes = ("batch", "seq", "heads", "head_dim", "rank", "repeats")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.rank_out is not None:
            check_sizes(rank_out=self.rank_out)
        if self.kv_heads is not None:
            check_sizes(kv_heads=self.kv_heads)
            if self.heads % self.kv_heads:
                raise InputError(f"kv-heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.rotary and self.head_dim % 2:
            raise InputError(f"rotary needs an even head-dim, got {self.head_dim}")
        check_seed(self.seed)
        pick_dtype(self.dtype)
        hidden = self.heads * self.head_dim
        for name, rank, most in (
            ("rank", self.rank, self.head_dim),
            ("rank-out", self.rank_out or 1, hidden),
        ):
            if rank > most:
                raise InputError(f"{name} must be from 1 to {most} (full rank), got {rank}")

    @property
    def plan(self) -> RankPlan:
        """The ranks of the four projections, as one layer."""
        return layer_plan(self.heads, self.head_dim, self.rank, self.rank_out, self.kv_heads)

    def config(self) -> dict[str, Any]:
        """The setting as plain values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"rank_out": self.plan.get(0, "o")[0], "kv_heads": self.plan.shape.kv_heads}

    def command(self) -> str:
        """The command that measures this point again."""
        options = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return command_of(self.bench, (), options)


def bench_attention(
    request: AttentionRequest, ceilings: Ceilings, progress: Progress
) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns what ran in words and the rows.

    Raises:
        DeviceError: no such GPU.
        OutOfMemoryError, torch.OutOfMemoryError: the point does not fit.
    """
    device, dtype = pick_device(request.device), pick_dtype(request.dtype)
    hidden = request.heads * request.head_dim
    about = (
        f"batch {request.batch} x {request.seq}, {request.heads} heads of {request.head_dim}, "
        f"{_form(request)}{request.plan.summary()}"
    )
    check_fits(about, 6 * request.batch * request.seq * hidden * dtype.itemsize, device)
    sublayer = Sublayer.random(
        request.plan,
        request.batch,
        request.seq,
        dtype,
        device,
        request.seed,
        causal=request.causal,
        rotary=request.rotary,
    )
    if request.causal:
        about = f"{about}; {_predicted(request, dtype, device)}"
    standards = _standards(sublayer)

    def verdict(name: str, out: torch.Tensor) -> GateReport:
        baseline, exact = standards["dense" if name == "dense" else "factors"]
        mine = Outputs(_ends(out).double().cpu(), None)
        return judge(mine, baseline, exact, name="fp64", dtype=dtype, sublayers=_STAGES)

    terms = Terms(
        device,
        request.dtype,
        ceilings,
        BASELINES,
        request.repeats,
        BUDGET_SECONDS[device.type],
        cache_flush(device),
    )
    return about, run_contest(contestants(sublayer), verdict, terms, progress)


def _form(request: AttentionRequest) -> str:
    """What is not a bidirectional encoder's, in words that a comma follows."""
    parts = {
        f"{request.kv_heads} of k and v": request.kv_heads not in (None, request.heads),
        "causal": request.causal,
        "rotary": request.rotary,
    }
    return "".join(f"{part}, " for part, said in parts.items() if said)


def _predicted(request: AttentionRequest, dtype: torch.dtype, device: torch.device) -> str:
    """What the cost model says of the two ways from factors, attention alone."""
    shape = request.plan.shape
    query, key = (HeadLayout((request.rank,) * count) for count in (shape.heads, shape.kv_heads))
    choice = prefill_choice(
        request.batch,
        request.seq,
        0,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        (query, key, key),
        dtype,
        device,
        rotary=request.rotary,
    )
    return f"attention by the cost model: {choice.words}"


def _standards(sublayer: Sublayer) -> Mapping[str, tuple[Outputs, Outputs]]:
    """Plain torch in the run's dtype, and in float64, on the first and the last sequence."""
    ends = sublayer.on(_ends(sublayer.x))
    wide = ends.double()
    return {
        kind: (Outputs(run(ends).double().cpu(), None), Outputs(run(wide).cpu(), None))
        for kind, run in (("dense", Sublayer.dense_plain), ("factors", Sublayer.factors_plain))
    }


def _ends(out: torch.Tensor) -> torch.Tensor:
    return out[[0, -1]] if len(out) > 1 else out
