"""SDPA without a mask where nothing is masked, also under torch.compile, so that compiled baselines are at their best.

While it is traced, transformers 5.17 (5.23 no longer) makes an S x S mask even of no padding at all, as it may not
look at what it is given. SDPA then has no flash kernel: BERT-base at [32, 512] took 18.1 ms under torch.compile on an
H200, eager 7.7, and at [1, 16384] 354 ms and 12.5 GiB. The benches have no padding, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "sdpa_unmasked"


@contextmanager
def unmasked(model: Any) -> Iterator[None]:
    """Within, SDPA of this model, and of what is built of it, gets a mask only for padding or a local window."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(_NAME, _mask)
    before = model.config._attn_implementation
    if before == "sdpa":
        model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = False,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> torch.Tensor | None:
    if attention_mask is None and local_size is None:
        # Causal is what SDPA makes of no mask where there are as many queries as keys.
        causal = allow_is_causal_skip and kv_length == q_length
        if causal or allow_is_bidirectional_skip:
            return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **options,
    )
