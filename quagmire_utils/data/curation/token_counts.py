"""How many tokens a text has: the tokenizer's own count, without tokenising every text from end to end.

A byte-level BPE tokenizer as Llama-3, Qwen and Mistral-NeMo have it first cuts a text by a regular expression, and none
of these expressions matches across a place where a space follows something that is no whitespace, or where a line ends
and the next begins with neither whitespace nor a slash. So the count of a text is the sum of those of its words, each
with the space before it. Words are remembered, as mathematical prose repeats them: this is 8 times as fast as the
tokenizer's own batch method. Any other tokenizer counts whole texts.

    count = TokenCounter(tokenizer_json("Qwen/Qwen3-4B-Base"))
    count(["The answer is $\\\\frac{1}{2}$."])        # [9]: no special tokens
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.data.pretrained import locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\0"
_AFTER_WORD = re.compile(r"(?<=\S) ")
_AFTER_LINE = re.compile(r"(?<=\n)(?=[^\s/])")
_SPACES_BEFORE = [c + " " for c in map(chr, range(0x3001)) if c.isspace()]
_ASCII_SPACES = [pair for pair in _SPACES_BEFORE if pair.isascii()]
_REMEMBERED = 500_000  # words; some 60 MB
_LONGEST = 40  # characters of a word worth remembering
# The expressions of Llama-3, Qwen2 and 3, and Mistral-NeMo. GPT-2's, built into ByteLevel, sees past a line's end.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
MISTRAL_NEMO = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
EXPRESSIONS = (LLAMA3, QWEN, MISTRAL_NEMO)
_SPANNING = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")  # of a model


def tokenizer_json(tokenizer: str | Path | PreTrainedTokenizerBase) -> str:
    """Return a tokenizer (a path, a hub id or a loaded one) as its library saves it, without truncation and padding.

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
    return fast.to_str()


class TokenCounter:
    """Counts the tokens of texts, special tokens not added; `by_words` says whether it does so word by word."""

    def __init__(self, tokenizer: str) -> None:
        """Make a counter from what `tokenizer_json` gives."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self.by_words = counts_by_words(json.loads(tokenizer))
        self._known: dict[str, int] = {}  # words, each with the space before it
        self._checked = False

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        if not self.by_words or any(_MARK in text for text in texts):
            return self.whole(texts)
        counts = self._by_words(texts)
        if not self._checked and texts:  # a tokenizer with the known parts that still counts differently
            self._checked = True
            if counts != (whole := self.whole(texts)):
                self.by_words = False
                return whole
        return counts

    def whole(self, texts: Sequence[str]) -> list[int]:
        """Return the same by tokenising the texts from end to end."""
        return [len(one) for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _by_words(self, texts: Sequence[str]) -> list[int]:
        import pyarrow as pa
        import pyarrow.compute as pc

        # Arrow cuts the words and finds the different ones; Python sees only these
        words = pc.split_pattern(pa.array(map(_mark_words, texts), pa.large_string()), _MARK)
        coded = pc.dictionary_encode(words.flatten())
        counts = np.array(self._look_up(coded.dictionary.to_pylist()), np.int64)
        until = np.concatenate([[0], np.cumsum(counts[coded.indices.to_numpy()])])
        return np.diff(until[words.offsets.to_numpy()]).tolist()

    def _look_up(self, words: list[str]) -> list[int]:
        known = self._known
        if len(known) > _REMEMBERED:
            known.clear()
        new = [word for word in words if word not in known]
        known.update(zip(new, self.whole(new), strict=True))
        counts = [known[word] for word in words]
        for word in new:
            if len(word) > _LONGEST:
                del known[word]
        return counts


def _mark_words(text: str) -> str:
    """Return the text with a mark wherever it may be cut: where a word or a line begins."""
    spaced = any(map(text.__contains__, _ASCII_SPACES if text.isascii() else _SPACES_BEFORE))
    text = _AFTER_LINE.sub(_MARK, text)
    # marking every space is the same if none follows whitespace, and far quicker
    return _AFTER_WORD.sub(_MARK + " ", text) if spaced else text.replace(" ", _MARK + " ")


def counts_by_words(tokenizer: dict[str, Any]) -> bool:
    """Tell whether a tokenizer (its JSON) is one of those whose count is the sum over words."""
    model, normalizer = tokenizer["model"], tokenizer["normalizer"]
    if model["type"] != "BPE" or any(model.get(name) for name in _SPANNING):
        return False
    if normalizer is not None and normalizer["type"] != "NFC":  # which composes nothing with a space
        return False
    for token in tokenizer["added_tokens"]:
        # found in the raw text before it is cut: one with a space in it, or that swallows spaces, might span a cut
        if token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]):
            return False
    steps = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers", [])
    if len(steps) != 2 or steps[0].get("pattern", {}).get("Regex") not in EXPRESSIONS:
        return False
    cut, last = steps
    isolated = cut["behavior"] == "Isolated" and not cut["invert"]
    return isolated and last["type"] == "ByteLevel" and not last["add_prefix_space"] and not last["use_regex"]
