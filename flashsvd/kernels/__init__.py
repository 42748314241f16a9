"""The ops: each a definition in plain torch, a streaming form in plain torch and a Triton kernel.

Nothing here knows of models. Importing this package imports no Triton and touches no GPU.
"""

from flashsvd.kernels.attention import flash_svd_attention
from flashsvd.kernels.backend import choose, resolve
from flashsvd.kernels.embedding import embed_norm
from flashsvd.kernels.ffn import flash_svd_ffn, flash_svd_ffn_v2, flash_svd_glu
from flashsvd.kernels.ffn_block import BlockNorm, flash_svd_ffn_block
from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.kernels.rank_space import rank_space_attention

__all__ = [
    "BlockNorm",
    "HeadLayout",
    "Projection",
    "choose",
    "embed_norm",
    "flash_svd_attention",
    "flash_svd_ffn",
    "flash_svd_ffn_block",
    "flash_svd_ffn_v2",
    "flash_svd_glu",
    "rank_space_attention",
    "resolve",
]
