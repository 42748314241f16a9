"""OPT (Zhang et al. 2022): learned positions, biases everywhere, no gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.encoders import kernel_activation
from flashsvd.models.family import Decoder, Family
from flashsvd.models.llama_like import decoder_shape, stream_block
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
_NORMS = {"attention": "self_attn_layer_norm", "feed_forward": "final_layer_norm"}


def _shape(config: Any) -> ModelShape:
    heads = config.num_attention_heads
    return decoder_shape(
        "opt",
        hidden=config.hidden_size,
        width=config.ffn_dim,
        heads=heads,
        kv_heads=heads,
        head_dim=config.hidden_size // heads,
        layers=config.num_hidden_layers,
        positions=config.max_position_embeddings,
        gated=False,
    )


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("decoder.layers").children())


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    config: Any = base_model.config
    if not config.do_layer_norm_before:
        raise ModelError("this OPT norms after its sublayers, as opt-350m does: use the lowrank engine")
    for index, block in enumerate(_layers(base_model)):
        stream_block(block, index, attention, feed_forward)


# pre_norm holds for every release but opt-350m, which only the engines that keep the block's own forward run.
FAMILY = Family(
    model_type="opt",
    title="OPT",
    shape=_shape,
    path=lambda layer, slot: f"decoder.layers.{layer}.{_PATHS[slot]}",
    layers=_layers,
    norm=lambda layer, sublayer: f"decoder.layers.{layer}.{_NORMS[sublayer]}",
    activation=lambda config: kernel_activation(config.activation_function),
    stream=_stream,
    task="language",
    pre_norm=True,
    decoder=Decoder("decoder.embed_tokens", "decoder.final_layer_norm", ("decoder.embed_positions", 2)),
)
