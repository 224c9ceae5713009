"""Prompts: the instruction around a question, as text and as the token ids that an engine sees.

Implements the prompt of App. B: the question, a line break, and the instruction below. The rendered prompt is stored
with the samples, because a changed template would change results unnoticed.

    prompt = render(problem.question, tokenizer)              # chat if the tokenizer has a template, else plain
    target = response_ids(tokenizer, trace.response, prompt)  # prompt.token_ids + target: one training sequence

Prompt and response are tokenised separately and joined as ids: while sampling, the model continues from the prompt's
ids, so it could never produce a sequence in which one token spans the border. A control token that a question or a
response spells out (`<|im_end|>`) is text, not the end of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quagmire_utils.data.problems import Problem

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
INSTRUCTIONS = {  # by grader; those of other domains than the paper's are ours, kept close to its own
    "math": INSTRUCTION,
    "math_verify": INSTRUCTION,
    "choice": "Let's think step by step and output only the letter of the correct choice within \\boxed{}.",
    "text": INSTRUCTION,
    "code": "Let's think step by step and output the complete Python code in one ```python block at the end.",
}
STDIN_INSTRUCTION = (
    "Let's think step by step and output the complete Python program in one ```python block at the end. It reads from "
    "standard input and prints to standard output."
)
TEMPLATES = ("auto", "chat", "plain")
_THINK = "<think>"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as stored (`text`, with the special tokens that a chat template writes) and as an engine sees it."""

    text: str
    token_ids: tuple[int, ...]


def resolve_template(tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> str:
    """Return `chat` or `plain`: what `template` means for this tokenizer.

    Raises ParameterError for an unknown name, and for `chat` with a tokenizer that has no chat template.
    """
    if template not in TEMPLATES:
        raise ParameterError("template", template, f"one of {', '.join(TEMPLATES)}")
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_template:
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise ParameterError("template", template, reason=f"{name} has no chat template; use 'plain' or 'auto'")
    if template == "auto":
        return "chat" if has_template else "plain"
    return template


def instruction_of(problem: Problem) -> str:
    """Return what a problem's prompt says after the question: its own instruction, or that of its grader."""
    instruction = problem.instruction if problem.instruction is not None else INSTRUCTIONS.get(problem.grader)
    if instruction is None:
        reason = f"problem {problem.id} needs one, as its grader {problem.grader} has none"
        raise ParameterError("instruction", reason=reason)
    return instruction


def render_problem(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str = "auto", *, day: date | None = None
) -> RenderedPrompt:
    """Return the prompt of a problem of any domain, see `render`."""
    return render(problem.question, tokenizer, template, instruction=instruction_of(problem), day=day)


def render(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str = "auto",
    *,
    instruction: str = INSTRUCTION,
    day: date | None = None,
) -> RenderedPrompt:
    """Return the paper's prompt for one question, or one with another instruction.

    `chat`: one user turn `"{question}\\n{INSTRUCTION}"` through the tokenizer's chat template, assistant turn opened;
    the template writes every special token itself, so none is added. `plain`: `"{question}\\n{INSTRUCTION}\\n"` with
    the special tokens that the tokenizer puts before a text (a BOS, or nothing), without those that it puts after it.
    `day`: what a template that writes a date writes (default: today). Raises ParameterError as `resolve_template` does,
    for a blank question, and for a template that fails or leaves out the question.
    """
    if not question.strip():
        raise ParameterError("question", question, reason="it is blank")
    content = f"{question}\n{instruction}"
    if resolve_template(tokenizer, template) == "plain":
        text = f"{content}\n"
        return RenderedPrompt(text, (*_leading_special_ids(tokenizer), *_text_ids(tokenizer, text)))
    text = _chat(tokenizer, content, day or date.today())
    if text.rstrip().endswith(_THINK) and content.endswith(_THINK):  # the template opens the thinking itself
        content = content.removesuffix(_THINK).rstrip()
        text = _chat(tokenizer, content, day or date.today())
    if not _has_control_token(tokenizer, content):
        return RenderedPrompt(text, tuple(tokenizer.encode(text, add_special_tokens=False)))
    before, *after = text.split(content.strip())
    if not after:
        reason = "the chat template changes a question that spells out a control token"
        raise ParameterError("template", template, reason=reason)
    token_ids = list(tokenizer.encode(before, add_special_tokens=False))
    for part in after:
        token_ids += _text_ids(tokenizer, content.strip()) + tokenizer.encode(part, add_special_tokens=False)
    return RenderedPrompt(text, tuple(token_ids))


def _chat(tokenizer: PreTrainedTokenizerBase, content: str, day: date) -> str:
    """Return one user turn as the chat template writes it; some templates want its content as a list of parts."""
    from jinja2 import TemplateError

    reason = "the chat template leaves out the question"
    for form in (content, [{"type": "text", "text": content}]):
        turn = [{"role": "user", "content": form}]
        pinned = {"strftime_now": day.strftime} if writes_date(tokenizer) else {}
        try:
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **pinned)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            if form is content:
                cause = str(error).strip().partition("\n")[0]
                reason = f"the chat template fails ({type(error).__name__}: {cause})"
            continue
        if "".join(content.split()) in "".join(text.split()):
            return text
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    raise ParameterError("template", "chat", reason=f"{reason}; mend that of {name}, or use 'plain'")


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer's chat template writes a date, which a store keeps so that tomorrow's run resumes."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, _size: int) -> frozenset[str]:
    """Return a tokenizer's control tokens, but those around a model's thinking, which a response is meant to write."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset([*added, *tokenizer.all_special_tokens]) - {_THINK, "</think>"}


def _has_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return any(token in text for token in _control_tokens(tokenizer, len(tokenizer)))


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a control token."""
    options = {"split_special_tokens": True} if _has_control_token(tokenizer, text) else {}
    return tokenizer.encode(text, add_special_tokens=False, **options)


def _leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that a tokenizer puts before a text. Some append an EOS too, which would end a prompt early."""
    bare = tokenizer.encode("0", add_special_tokens=False)
    full = tokenizer.encode("0", add_special_tokens=True)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def response_text(tokenizer: PreTrainedTokenizerBase, response: str, prompt: RenderedPrompt | None = None) -> str:
    """Return a response without the EOS at its end, and without a `<think>` that the prompt has opened already."""
    eos = tokenizer.eos_token
    while eos and response.rstrip().endswith(eos):
        response = response.rstrip().removesuffix(eos)
    if prompt is not None and prompt.text.rstrip().endswith(_THINK) and response.lstrip().startswith(_THINK):
        response = response.lstrip().removeprefix(_THINK)
        return response.removeprefix("\n") if prompt.text.endswith("\n") else response
    return response


def response_ids(
    tokenizer: PreTrainedTokenizerBase, response: str, prompt: RenderedPrompt | None = None
) -> tuple[int, ...]:
    """Return the ids of a training target: the response without special tokens, then EOS, which stops sampling.

    `render(...).token_ids + response_ids(...)` is the sequence that SFT trains on and the loss scores, and the one that
    a model samples. Raises ParameterError for a blank response, and if the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ParameterError("tokenizer", reason="it has no EOS token, so a response has no end to learn")
    text = response_text(tokenizer, response, prompt)
    if not text.strip():
        raise ParameterError("response", response, reason="it is blank")
    return (*_text_ids(tokenizer, text), tokenizer.eos_token_id)


def check_fits(prompts: Sequence[RenderedPrompt], max_tokens: int, context_length: int) -> None:
    """Raise ParameterError if a prompt and `max_tokens` exceed the context, with the count and the longest prompt."""
    if max_tokens < 1:
        raise ParameterError("max_tokens", max_tokens, "at least 1")
    lengths = [len(prompt.token_ids) for prompt in prompts]
    too_long = sum(length + max_tokens > context_length for length in lengths)
    if too_long:
        reason = (
            f"{max_tokens} does not fit: {too_long} of {len(lengths)} prompts (the longest has {max(lengths)} tokens) "
            f"leave less than that in the context of {context_length} tokens"
        )
        raise ParameterError("max_tokens", max_tokens, reason=reason)
