"""A call of every kernel that can be traced, of bert-base and Llama-2-7B."""

from __future__ import annotations

from dataclasses import replace

from flashsvd.onchip.calls import KernelCall

_HEADS = {"heads": 12, "kv_heads": 12, "head_dim": 64, "hidden": 768}

CALLS: dict[str, KernelCall] = {
    "ffn": KernelCall("ffn", "bf16", 32, 512, 240, 240, width=3072, hidden=768),
    "ffn gated": KernelCall("ffn", "fp32", 8, 256, 64, 64, 64, width=704, hidden=256, activation="silu"),
    "ffn_v2": KernelCall("ffn_v2", "bf16", 32, 512, 128, 128, width=3072, hidden=768),
    "ffn_hopper": KernelCall("ffn_hopper", "bf16", 32, 512, 240, 240, width=3072, hidden=768),
    "ffn_hopper tail": KernelCall("ffn_hopper", "fp16", 32, 512, 312, 312, width=3072, hidden=768),
    "attention": KernelCall("attention", "bf16", 32, 512, 40, 40, **_HEADS),  # type: ignore[arg-type]
    "attention causal": KernelCall(
        "attention", "bf16", 4, 512, 64, 64, heads=8, kv_heads=2, head_dim=64, causal=True, rotary=True
    ),
    "rank_space": KernelCall("rank_space", "bf16", 32, 512, 40, 40, **_HEADS),  # type: ignore[arg-type]
    "rank_space_hopper": KernelCall("rank_space_hopper", "bf16", 32, 512, 40, 40, **_HEADS),  # type: ignore[arg-type]
    "step": KernelCall("step", "bf16", 1, 1, 1024, 0, 1024, width=11008, hidden=4096, activation="silu"),
    "step batch": KernelCall(
        "step", "bf16", 4, 1, 1024, 0, 1024, width=11008, hidden=4096, activation="silu"
    ),
}


def small(call: KernelCall) -> KernelCall:
    """The same with little memory."""
    return replace(call, batch=min(call.batch, 2), width=min(call.width, 1024))
