"""Load the tokenizer that a model was trained with: the one in its `tokenizer.json`.

transformers chooses a class by `model_type` and `tokenizer_class`. Some classes (LlamaTokenizer, Qwen2Tokenizer) take
the vocabulary from the file and split texts by rules of their own. For a model of another origin, such as the
R1-distilled ones, that gives other ids than in training and answers without spaces, and no error (transformers#45488).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# What classes split differently: digits, runs of spaces, line breaks, tabs, scripts, code, formulas.
PROBE = (
    "It is 456912.\n\n  So x = 3.14 * (y - 1,024)   and that's\r\n\n\tdef f(n):\n        return n**2  # naïve\n"
    "中文：答案是 42。 Привет, мир! \U0001f642 $\\boxed{\\frac{1}{2}}$ A\u030a ﬁ ½ "
)


def load_tokenizer(
    model: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model as its `tokenizer.json`, if any, describes it. Raises ParameterError."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    how = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **how)
        offline = {f"_raise_exceptions_for_{why}": False for why in ("missing_entries", "connection_errors")}
        path = cached_file(str(model), "tokenizer.json", revision=revision, **offline)
        file = None if path is None else Tokenizer.from_file(path)
        # mistral-common, and code that comes with a model, know better than the file
        own_code = tokenizer.__module__.startswith("transformers_modules")
        if file is None or own_code or not isinstance(tokenizer, PreTrainedTokenizerFast) or _agree(tokenizer, file):
            return tokenizer
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model, **how)
    except Exception as error:  # tokenizers raises bare Exception for a broken tokenizer.json
        raise cannot_load("tokenizer", model, error) from error
    if not _agree(tokenizer, file):
        reason = f"transformers makes another tokenizer of {model} than its tokenizer.json describes"
        raise ParameterError("model", str(model), reason=reason)
    return tokenizer


def _agree(tokenizer: PreTrainedTokenizerBase, file: Tokenizer) -> bool:
    """Whether both give `PROBE` the same ids, make the same text of them, and number the added tokens alike."""
    file.no_truncation()
    ids = file.encode(PROBE, add_special_tokens=False).ids
    added = file.get_added_tokens_decoder()
    try:
        return (
            tokenizer.encode(PROBE, add_special_tokens=False) == ids
            and tokenizer.decode(ids, clean_up_tokenization_spaces=False) == file.decode(ids, skip_special_tokens=False)
            and all(tokenizer.convert_tokens_to_ids(token.content) == number for number, token in added.items())
        )
    except Exception:  # as tokenizers raises it, for a class whose unknown token the vocabulary lacks
        return False


def cannot_load(part: str, model: str | Path, error: Exception) -> ParameterError:
    """Return the error for a part of a model that a library did not load."""
    if "trust_remote_code" in str(error):
        reason = f"{model} comes with its own Python code, which only runs with trust_remote_code=True"
        return ParameterError("trust_remote_code", False, reason=reason)
    return ParameterError("model", str(model), reason=f"the {part} of {model} can't be loaded ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
