"""The ops: each a definition in plain torch, a streaming form in plain torch and a Triton kernel.

Nothing here knows of models. Importing this package imports no Triton and touches no GPU.
"""

from flashsvd.kernels.attention import flash_svd_attention
from flashsvd.kernels.backend import choose, resolve
from flashsvd.kernels.ffn import flash_svd_ffn
from flashsvd.kernels.layout import HeadLayout, Projection

__all__ = ["HeadLayout", "Projection", "choose", "flash_svd_attention", "flash_svd_ffn", "resolve"]
