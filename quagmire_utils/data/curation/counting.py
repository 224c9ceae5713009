"""How many tokens a text has: the tokenizer's own count, without tokenising every text from end to end.

Counting is what a scan spends its time on (the lengths of Sec. 2's shortest and longest examples are in tokens of the
model's own tokenizer), and mathematical prose repeats its words. A byte-level BPE tokenizer as Llama-3, Qwen and
Mistral-NeMo have it first cuts a text by a regular expression, and none of these expressions matches across a place
where a space follows something that is no whitespace, or where a line ends and the next begins with neither whitespace
nor a slash. So the count of a text is the sum of those of its words, each with the space before it, and words are
remembered. Any other tokenizer counts whole texts.

    count = TokenCounter(tokenizer_json("Qwen/Qwen3-4B-Base"))
    count(["The answer is $\\\\frac{1}{2}$."])        # [9]: no special tokens
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

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


class TokenCounter:
    """Counts the tokens of texts; `by_words` says whether it does so word by word."""

    def __init__(self, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self.by_words = counts_by_words(json.loads(tokenizer))
        self._known: dict[str, int] = {}  # words, each with the space before it
        self._checked = False

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens not added."""
        if not self.by_words or any(_MARK in text for text in texts):
            return self._whole(texts)
        counts = self._by_words(texts)
        if not self._checked and texts:  # a tokenizer with the known parts that still counts otherwise
            self._checked = True
            if counts != (whole := self._whole(texts)):
                self.by_words = False
                return whole
        return counts

    def _whole(self, texts: Sequence[str]) -> list[int]:
        return [len(one) for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _by_words(self, texts: Sequence[str]) -> list[int]:
        import pyarrow as pa
        import pyarrow.compute as pc

        # Arrow cuts the words and finds the different ones; Python sees only these
        words = pc.split_pattern(pa.array(map(mark_words, texts), pa.large_string()), _MARK)
        coded = pc.dictionary_encode(words.flatten())
        counts = np.array(self._look_up(coded.dictionary.to_pylist()), np.int64)
        until = np.concatenate([[0], np.cumsum(counts[coded.indices.to_numpy()])])
        return np.diff(until[words.offsets.to_numpy()]).tolist()

    def _look_up(self, words: list[str]) -> list[int]:
        known = self._known
        if len(known) > _REMEMBERED:
            known.clear()
        new = [word for word in words if word not in known]
        known.update(zip(new, self._whole(new), strict=True))
        counts = [known[word] for word in words]
        for word in new:
            if len(word) > _LONGEST:
                del known[word]
        return counts


def mark_words(text: str) -> str:
    """The text (without marks) with one wherever a word and a line begin, that is where it may be cut."""
    spaced = any(map(text.__contains__, _ASCII_SPACES if text.isascii() else _SPACES_BEFORE))
    text = _AFTER_LINE.sub(_MARK, text)
    # marking every space is the same where none follows whitespace, and far quicker
    return _AFTER_WORD.sub(_MARK + " ", text) if spaced else text.replace(" ", _MARK + " ")


def counts_by_words(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) is one of those whose count is the sum over words."""
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer")
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return False
    if model.get("end_of_word_suffix") or model.get("byte_fallback") or not _is_nfc(normalizer):
        return False
    for token in tokenizer.get("added_tokens", []):
        # found in the raw text before it is cut: one with a space in it, or that swallows spaces, might span a cut
        if token["lstrip"] or token["rstrip"] or token.get("single_word") or re.search(r"\s", token["content"]):
            return False
    return _is_known(tokenizer.get("pre_tokenizer"))


def _is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """No normalizer, or NFC, which composes nothing with a space."""
    if normalizer is not None and normalizer["type"] == "Sequence":
        return all(_is_nfc(one) for one in normalizer["normalizers"])
    return normalizer is None or normalizer["type"] == "NFC"


def _is_known(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    known = [
        one["type"] == "Split"
        and one["behavior"] == "Isolated"
        and not one["invert"]
        and one["pattern"].get("Regex") in EXPRESSIONS
        for one in cuts
    ]
    return known == [True] and not last.get("use_regex", True)
