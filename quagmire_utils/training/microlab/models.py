"""Micro models: a character tokenizer and small Llama, Mistral and Qwen3 models with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from quagmire_utils.core.settings import Architecture
from quagmire_utils.data.prompts import INSTRUCTION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
INITIALIZER_RANGE = 0.06  # transformers' 0.02 suits wide models; at width 96 it doubled the steps to learn the task
HEAD_DIM = 32  # the smallest that vLLM's CPU attention supports
CONTEXT_LENGTH = 8192  # the paper's 8k; a token is a character, and the longest benchmark problem has ~4.5k

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """Return a character tokenizer that encodes any UTF-8 text (as bytes beyond printable ASCII).

    The paper's instruction and `\\boxed{` are one token each, so that the standard prompt costs a micro model two
    tokens instead of seventy. With `chat_template`, chats are rendered with one role token per message; without it, the
    model is a plain base model.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    entries = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (INSTRUCTION, "\\boxed{")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        fast.chat_template = _CHAT_TEMPLATE
    return fast


def build_model(
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 96,
    layers: int = 4,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a randomly initialised float32 causal LM of one of `ARCHITECTURES`, with `hidden_size // 32` heads.

    96 x 4 layers have about half a million parameters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = hidden_size // HEAD_DIM
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
    )
    if architecture == "mistral":
        config.sliding_window = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.do_sample = True
    return model.eval()
