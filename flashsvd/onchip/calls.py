"""Which kernels a layer of a model runs, and with what sizes. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from flashsvd.errors import FlashSVDError, InputError
from flashsvd.models.family import family_of
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan

RANK_STEP = 8
"""The engines pad ranks to multiples of it in memory: 16 bytes in half types."""
SWEEP_STEP = 16
"""No tile of a rank ends between two multiples of it."""


@dataclass(frozen=True)
class KernelKind:
    """A kernel as a menu shows it. `only_sm`: the one compute capability whose instructions it uses, or 0."""

    name: str
    title: str
    does: str
    only_sm: int = 0
    half_only: bool = False


KERNELS: Mapping[str, KernelKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            KernelKind("ffn", "FFN v1", "act(P·U1ᵀ)·V2ᵀ, the wide activation only on chip"),
            KernelKind(
                "ffn_hopper", "FFN v1 Hopper", "the same by Hopper's own instructions", 90, half_only=True
            ),
            KernelKind("ffn_v2", "FFN v2", "FFN v1 and its output factor, S only on chip"),
            KernelKind("attention", "attention", "q, k and v rebuilt on chip, softmax over tiles of keys"),
            KernelKind("rank_space", "rank space", "attention whose head dim is the rank, nothing rebuilt"),
            KernelKind(
                "rank_space_hopper",
                "rank space Hopper",
                "the same by Hopper's own instructions",
                90,
                half_only=True,
            ),
            KernelKind("step", "decode step", "one token: the second factors of gate and up"),
        )
    }
)


@dataclass(frozen=True)
class KernelCall:
    """One launch: which kernel, on what sizes.

    `rank` and `rank_out` are of the first and second product of a feed-forward, of q and k and of v per head in
    attention (0: dense heads), of scores and values in rank space; `rank_up` is of a gate's second branch, 0 without
    one. `width` is the wide dimension, `hidden` the model's.
    """

    kernel: str
    dtype: str
    batch: int
    seq: int
    rank: int
    rank_out: int = 0
    rank_up: int = 0
    width: int = 0
    hidden: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 0
    activation: str = "gelu"
    causal: bool = False
    rotary: bool = False
    shared: bool = False

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.seq

    @property
    def group(self) -> int:
        """Query heads that read one kv head."""
        return self.heads // self.kv_heads

    @property
    def form(self) -> tuple[object, ...]:
        """What must be equal for two calls to have the same tiles at equal ranks and rows."""
        heads = self.kernel in ("attention", "rank_space", "rank_space_hopper")
        uneven = self.width % 32 != 0
        # Only these kernels look at the sequence; the others see rows.
        attends = (self.head_dim if self.kernel == "attention" else 0, self.group, self.causal, self.rotary)
        step = (self.batch, self.width, self.hidden) if self.kernel == "step" else ()
        gated = (self.rank_up > 0, self.activation) if not heads else ()
        return (
            self.kernel,
            self.dtype,
            attends if heads else (),
            self.shared,
            gated,
            step,
            uneven and not heads,
        )

    def with_rank(self, rank: int) -> KernelCall:
        """The same with one rank everywhere."""
        return replace(
            self,
            rank=rank if self.rank else 0,
            rank_out=rank if self.rank_out else 0,
            rank_up=rank if self.rank_up else 0,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def step_of(rank: int, step: int = SWEEP_STEP) -> int:
    """A rank rounded up to a multiple of `step`; 0 stays 0.

    >>> step_of(102), step_of(128), step_of(0)
    (112, 128, 0)
    """
    return math.ceil(rank / step) * step


def calls_of(plan: RankPlan, layer: int, batch: int, seq: int, dtype: str) -> dict[str, KernelCall | str]:
    """Every kernel for one layer (counted from 0) of a planned model: its call, or in one line why it has none.

    >>> from flashsvd.allocate import uniform
    >>> from flashsvd.models.sources import resolve, shape_of
    >>> plan = uniform(shape_of(resolve("bert-base")), 0.5)
    >>> calls = calls_of(plan, 0, 32, 512, "bf16")
    >>> calls["ffn"].rank, calls["ffn"].width, calls["rank_space"].rank, calls["step"]
    (312, 3072, 32, 'only decoders take steps of one token')
    """
    shape = plan.shape
    found: dict[str, KernelCall | str] = {}
    for name in KERNELS:
        try:
            found[name] = _call(name, shape, plan, layer, batch, seq, dtype)
        except InputError as error:
            found[name] = str(error)
    return found


def asked_rank(plan: RankPlan, layer: int, kernel: str) -> int:
    """The rank that a plan gives what a kernel reads first, before any padding; 0 where that is dense."""
    gated = "gate" in plan.shape.slot_names
    feed_forward = kernel in ("ffn", "ffn_hopper", "ffn_v2", "step")
    slots = (("gate" if gated else "up"),) if feed_forward else ("k",) if "rank" in kernel else ("q", "k")
    return max((rank or 0 for slot in slots for rank in plan.get(layer, slot)), default=0)


def sweep(call: KernelCall, most: int) -> Iterator[KernelCall]:
    """The call at the largest rank of every choice of tiles, up to the one that holds `most`."""
    for rank in tops(call):
        yield call.with_rank(rank)
        if rank >= most:
            return


def tops(call: KernelCall) -> tuple[int, ...]:
    """Ranks at which a kernel's tiles change for the last time before the next: all ranks up to one of them, above the
    one before, run by the same tiles. Every rank counts as a call's only one."""
    if call.kernel in ("ffn", "ffn_v2") and call.dtype == "fp32":
        return (16, 32, 64, 128 if call.kernel == "ffn_v2" else 512)
    return {
        "ffn": (32, 64, 96, 128, 160, 192, 256, 288, 320, 384, 512),
        "ffn_v2": (32, 64, 96, 128),
        "ffn_hopper": (64, 128, 256, 320),
        "attention": (16, 32, 64, 128),
        "rank_space": (16, 32, 64, 128),
        "rank_space_hopper": (32, 48, 64),
        "step": (512, 1024, 1536, 2048),
    }[call.kernel]


def most_rank(call: KernelCall) -> int:
    """The largest rank worth sweeping: the head dim of attention, else 512 or the smaller side of the matrix."""
    if call.kernel == "attention":
        return call.head_dim
    if call.kernel == "rank_space":
        return 128
    if call.kernel == "rank_space_hopper":
        return 64
    most = {"ffn_v2": 128, "ffn_hopper": 320, "step": 2048}.get(call.kernel, 512)
    return min(most, call.width or most, call.hidden or most)


def _call(
    name: str, shape: ModelShape, plan: RankPlan, layer: int, batch: int, seq: int, dtype: str
) -> KernelCall:
    kind = KERNELS[name]
    if kind.half_only and dtype == "fp32":
        raise InputError("takes fp16 and bf16 only: choose one as precision")
    family = _family(shape)
    causal = family is not None and family.task == "language"
    rotary = family is not None and family.rotary is not None
    if name in ("ffn", "ffn_hopper", "ffn_v2", "step"):
        return _feed_forward(name, shape, plan, layer, batch, seq, dtype, causal)
    q, k, v = (_rank(plan, layer, slot) for slot in "qkv")
    if name in ("rank_space", "rank_space_hopper"):
        if rotary:
            raise InputError("rotary positions stand between q and k: their factors cannot be absorbed")
        if None in (q, k, v) or not shape.per_head:
            raise InputError("needs q, k and v factored head by head, below their break-even rank")
        if name == "rank_space_hopper" and causal:
            raise InputError("sees every key: causal models take the rank space kernel")
        k, v_rank = k or 0, v or 0
        if name == "rank_space_hopper" and max(k, v_rank) > 64:
            raise InputError(f"takes ranks up to 64, got {max(k, v_rank)}")
        ranks = (k, v_rank)
    else:
        if q is None and k is None and v is None:
            raise InputError("q, k and v of this layer are dense: there is nothing to rebuild")
        ranks = (max(q or 0, k or 0), v or 0)
    return KernelCall(
        name,
        dtype,
        batch,
        seq,
        *ranks,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        causal=causal,
        rotary=rotary,
        shared=not shape.per_head,
    )


def _feed_forward(
    name: str, shape: ModelShape, plan: RankPlan, layer: int, batch: int, seq: int, dtype: str, causal: bool
) -> KernelCall:
    gated = "gate" in shape.slot_names
    if name == "step" and not causal:
        raise InputError("only decoders take steps of one token")
    if name == "step" and not gated:
        raise InputError("shown for gated feed-forwards only")
    first, up, down = (_rank(plan, layer, slot) for slot in ("gate" if gated else "up", "up", "down"))
    if None in (first, up, down):
        raise InputError(
            "the feed-forward of this layer is not all factored: dense linears run as plain products"
        )
    if gated and name == "ffn_hopper":
        raise InputError("takes no gate: gated models run FFN v1")
    rank, rank_up, rank_out = first or 0, (up or 0) if gated else 0, down or 0
    if name == "ffn_hopper" and max(rank, rank_out) > 320:
        raise InputError(f"takes ranks up to 320, got {max(rank, rank_out)}")
    return KernelCall(
        name,
        dtype,
        1 if name == "step" else batch,
        1 if name == "step" else seq,
        rank,
        0 if name == "step" else rank_out,
        rank_up,
        width=shape.slot(layer, "up").out_features,
        hidden=shape.hidden,
        activation="silu" if gated and causal else "gelu",
    )


def _rank(plan: RankPlan, layer: int, slot: str) -> int | None:
    """The largest rank of a slot's units as the engines pad it; None where one of them is dense."""
    ranks = plan.get(layer, slot)
    known = [rank for rank in ranks if rank is not None]
    return step_of(max(known), RANK_STEP) if len(known) == len(ranks) else None


def _family(shape: ModelShape) -> Any:
    try:
        return family_of(shape.family)
    except FlashSVDError:
        return None
