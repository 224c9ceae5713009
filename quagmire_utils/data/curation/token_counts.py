"""How many tokens a text has, by the tokenizer's own batch method.

tokenizer = fast_tokenizer("Qwen/Qwen3-4B-Base")
count_tokens(tokenizer, ["The answer is $\\\\frac{1}{2}$."])        # [9]: no special tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.data.pretrained import locate

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def fast_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> Tokenizer:
    """Return a tokenizer (a path, a hub id or a loaded one) of its library, without truncation and padding.

    Raises ParameterError if there is none, and for one without a fast version.
    """
    if isinstance(tokenizer, str | Path):
        try:
            tokenizer = load_tokenizer(locate(str(tokenizer)))
        except ParameterError as error:
            raise ParameterError("tokenizer", str(tokenizer), reason=error.reason) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ParameterError("tokenizer", reason=f"{type(tokenizer).__name__} has no fast version")
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(backend.to_str())
    fast.no_truncation()
    fast.no_padding()
    return fast


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, special tokens not added."""
    return [len(one) for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
