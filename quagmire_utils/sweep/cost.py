"""Cost of training and sampling from the sizes of a model: FLOPs, GPU memory, tokens per second.

    training_flops(shape, tokens=2e9, length=4000) / (312e12 * 0.35) / 3600     # GPU-hours on A100s at 35 % MFU
    decode_rate(shape, GPUS["A100-80GB"], prompt=150, answer=3000)              # tokens/s of one GPU

A matrix of n entries costs a token 2 n FLOPs forward, attention 4 x layers x heads x head_dim for each position that
the token attends to; backward is twice forward. Decoding is bound by memory: a step reads all weights and the keys and
values of every sequence, for one token of each, and as many sequences decode at once as fit beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BYTES = 2  # of a bf16 number
MEMORY_SHARE = 0.9  # of a GPU that vLLM takes by default
MOST_SEQUENCES = 256  # that vLLM decodes at once by default
DECODE_MFU = 0.5  # share of the peak that a decoding step's matrix products reach; seldom the limit
ADAM_BYTES = 16  # of a trained parameter: float32 weight, gradient and two moments
RESUME_BYTES = 12  # of it in a checkpoint to resume from: no gradient
LOGIT_COPIES = 2  # of float32 logits at the peak of a step whose loss reads them all; TRL's SFTTrainer: 1.8


@dataclass(frozen=True)
class Gpu:
    """Numbers of a GPU's data sheet."""

    flops: float  # dense bf16 FLOPs a second
    memory: float  # bytes
    bandwidth: float  # bytes a second


GPUS = {  # those of ComputeSettings.gpu
    "A100-80GB": Gpu(312e12, 80e9, 2.039e12),
    "A100-40GB": Gpu(312e12, 40e9, 1.555e12),
    "H100-80GB": Gpu(989e12, 80e9, 3.35e12),
    "H200": Gpu(989e12, 141e9, 4.8e12),
    "L40S": Gpu(362e12, 48e9, 0.864e12),
    "A10G": Gpu(125e12, 24e9, 0.6e12),
    "L4": Gpu(121e12, 24e9, 0.3e12),
    "RTX4090": Gpu(165e12, 24e9, 1.008e12),
}


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Read the sizes from a model's config.json. Raises ParameterError for another kind of model."""
    text = config.get_text_config()
    try:
        return ModelShape(
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            tied_embeddings=bool(text.tie_word_embeddings),
        )
    except AttributeError as error:
        raise ParameterError("model", reason=f"the sizes of a {config.model_type} are unknown ({error})") from error


def _layer_parameters(shape: ModelShape) -> int:
    """Return the entries of one layer's matrices: queries, keys, values, output, and the gated MLP."""
    attention = 2 * shape.hidden_size * shape.head_dim * (shape.heads + shape.kv_heads)
    return attention + 3 * shape.hidden_size * shape.intermediate_size


def parameters(shape: ModelShape) -> int:
    """Return all parameters but the few of normalisation inside attention that Qwen3 has (below a thousandth)."""
    embeddings = shape.vocabulary * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    norms = shape.hidden_size * (2 * shape.layers + 1)
    return shape.layers * _layer_parameters(shape) + embeddings + norms


def weight_bytes(shape: ModelShape) -> int:
    """Return a checkpoint's size in bf16."""
    return BYTES * parameters(shape)


def forward_flops(shape: ModelShape, context: float) -> float:
    """Return the FLOPs of one token that attends to `context` positions (itself included)."""
    matrices = shape.layers * _layer_parameters(shape) + shape.vocabulary * shape.hidden_size
    return 2.0 * matrices + 4.0 * shape.layers * shape.heads * shape.head_dim * context


def sequence_flops(shape: ModelShape, length: float) -> float:
    """Return the FLOPs of one forward pass over a sequence: its token i attends to i positions."""
    return length * forward_flops(shape, (length + 1) / 2)


def training_flops(shape: ModelShape, tokens: float, length: float, *, recompute: bool = True) -> float:
    """Return the FLOPs of training on `tokens` in sequences of `length`; `recompute`: with gradient checkpointing."""
    return (4 if recompute else 3) * tokens / length * sequence_flops(shape, length)


def training_bytes(
    shape: ModelShape, tokens: float, *, gpus: int = 1, logits: bool = True, recompute: bool = True
) -> float:
    """Return the bytes on each of `gpus` at the peak of a training step with `tokens` in one forward pass.

    Counts weights, gradients and AdamW's moments in float32, shared by the GPUs; what backward needs of each layer
    (with `recompute`, only its input, and one whole layer); and, with `logits`, those of all tokens.
    """
    states = ADAM_BYTES * parameters(shape) / gpus
    wide = 4 * shape.hidden_size  # the residual stream and what is normalised, in float32
    products = 2 * shape.hidden_size + 4 * (shape.heads + shape.kv_heads) * shape.head_dim + 4 * shape.intermediate_size
    layer = 2 * wide + BYTES * products
    kept = shape.layers * wide + layer if recompute else shape.layers * (wide + layer)
    return states + tokens * (kept + (LOGIT_COPIES * 4 * shape.vocabulary if logits else 0))


def kv_bytes(shape: ModelShape) -> int:
    """Return the bytes of the keys and values of one position, in bf16."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES


def decode_rate(
    shape: ModelShape,
    on: Gpu,
    *,
    prompt: float,
    answer: float,
    bandwidth_share: float = 1.0,
    step_seconds: float = 0.0,
    memory_share: float = MEMORY_SHARE,
) -> float:
    """Return the tokens/s that one GPU decodes with as many sequences as fit, at most 256.

    A sequence holds its prompt and, on average, half of its answer. Raises ParameterError if not one fits.
    """
    room = memory_share * on.memory - weight_bytes(shape)
    context = prompt + answer / 2
    sequences = min(MOST_SEQUENCES, room / (context * kv_bytes(shape)))
    if sequences < 1:
        needs = f"{weight_bytes(shape) / 1e9:.1f} GB of weights and one answer"
        reason = f"{needs} do not fit {memory_share:.0%} of {on.memory / 1e9:.0f} GB"
        raise ParameterError("compute.gpu", reason=reason)
    reads = (weight_bytes(shape) + sequences * context * kv_bytes(shape)) / (bandwidth_share * on.bandwidth)
    products = sequences * forward_flops(shape, context) / (DECODE_MFU * on.flops)
    return sequences / (max(reads, products) + step_seconds)
