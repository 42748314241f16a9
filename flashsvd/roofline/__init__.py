"""Every operation of a model on paper: FLOPs, bytes, and the least time it can take under two ceilings. No torch.

Letters and rules are those of `flashsvd.bench.counts`, which counts whole layers; the operations of a layer here sum to
it exactly. A product reads its weights once, and each tensor that one product leaves for the next is written once and
read once. q, k and v read one input, and so do up and gate: each group is one operation.
"""

from flashsvd.roofline.op import Op, Setting
from flashsvd.roofline.ops import Engine, forward_ops, step_ops
from flashsvd.roofline.totals import Ceiling, Total, totals, whole

__all__ = [
    "Ceiling",
    "Engine",
    "Op",
    "Setting",
    "Total",
    "forward_ops",
    "step_ops",
    "totals",
    "whole",
]
