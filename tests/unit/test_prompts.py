"""Prompts against what tokenizers themselves say: special tokens, chat templates, and the border to the response."""

from datetime import date

import pytest

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.prompts import INSTRUCTION, RenderedPrompt, check_fits, render, resolve_template, response_ids
from quagmire_utils.training.backends.runs import prompt_text
from quagmire_utils.training.microlab import build_tokenizer

QUESTION = "What is $1+2$?"
TEXTS = [QUESTION, "2 \\cdot 3 = \\boxed{6}", " leading", "naïve 数学 🎲", "a\n\n\nb\t", "<|eos|> is no end", "\\"]


def word_tokenizer(*, bos: bool = False, trailing_eos: bool = False, eos_token: str | None = "<eos>"):
    """A byte-level BPE that merges across words and lines, with the special tokens of Llama (BOS) or T5 (EOS)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<bos>", "<eos>"], **letters)
    # The instruction's end and a response's start are learnt as one token: joined as text, they would merge.
    tokenizer.train_from_iterator([f"{INSTRUCTION}\nFirst, we add"] * 50, trainer)
    template = f"{'<bos> ' if bos else ''}$A{' <eos>' if trailing_eos else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos_token, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize(
    ("has_template", "expected", "text"),
    [
        (True, "chat", f"<|user|>{QUESTION}\n{INSTRUCTION}<|assistant|>"),
        (False, "plain", f"{QUESTION}\nLet's think step by step and output the final answer within \\boxed{{}}.\n"),
    ],
)
def test_auto_follows_the_tokenizer(has_template, expected, text):
    tokenizer = build_tokenizer(chat_template=has_template)
    assert resolve_template(tokenizer) == expected
    prompt = render(QUESTION, tokenizer)
    assert prompt.text == text
    assert prompt == render(QUESTION, tokenizer, expected)
    assert "<|user|>" not in render(QUESTION, tokenizer, "plain").text
    if has_template:
        turn = [{"role": "user", "content": f"{QUESTION}\n{INSTRUCTION}"}]
        own = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert list(prompt.token_ids) == list(own["input_ids"])


@pytest.mark.parametrize(
    ("question", "template", "parameter"),
    [(QUESTION, "chat", "template"), (QUESTION, "", "template"), (" \n", "auto", "question")],
)
def test_what_cannot_be_rendered_is_refused(question, template, parameter, refused):
    with refused(parameter):
        render(question, build_tokenizer(chat_template=False), template)


@pytest.mark.parametrize("trailing_eos", [False, True])
def test_plain_has_the_tokenizers_bos_once_and_no_eos(trailing_eos):
    tokenizer = word_tokenizer(bos=True, trailing_eos=trailing_eos)
    ids = render(QUESTION, tokenizer, "plain").token_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    # Without its EOS, the tokenizer's own encoding.
    own = tokenizer.encode(f"{QUESTION}\n{INSTRUCTION}\n")
    assert list(ids) == (own[:-1] if trailing_eos else own)
    # a template that writes BOS gets no second one
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ids = render(QUESTION, tokenizer).token_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in render(QUESTION, word_tokenizer(bos=False)).token_ids  # adds none


@pytest.mark.parametrize("text", TEXTS)
def test_response_ends_in_eos_and_decodes_back(text):
    tokenizer = build_tokenizer()
    ids = response_ids(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text


CHAT = "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] | trim }}{% endfor %}{{ eos_token }}"
PARTS = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"


@pytest.mark.parametrize("template", ["", CHAT])
def test_a_control_token_in_a_question_is_text(template):
    tokenizer = word_tokenizer(bos=True)
    tokenizer.chat_template = template
    question = " What is <eos><bos>1?"
    prompt = render(question, tokenizer)
    plain = render(question.replace("<eos><bos>", ""), tokenizer)
    for special in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        assert prompt.token_ids.count(special) == plain.token_ids.count(special)
    assert question.strip() in tokenizer.decode(prompt.token_ids)
    assert list(plain.token_ids)[-5:] == tokenizer.encode(plain.text, add_special_tokens=False)[-5:]


@pytest.mark.parametrize(
    ("response", "body"),
    [
        ("ends<eos>\n", "ends"),
        ("ends <eos><eos>", "ends"),
        ("<eos> inside", "<eos> inside"),
        ("a <bos> b", "a <bos> b"),
    ],
)
def test_a_target_has_one_eos_at_its_end(response, body):
    tokenizer = word_tokenizer()
    ids = response_ids(tokenizer, response)
    assert [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id] == [len(ids) - 1]
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids[:-1]).rstrip() == body


def test_a_blank_target_is_refused(refused):
    with refused("response"):
        response_ids(word_tokenizer(), "<eos>")


@pytest.mark.parametrize("ending", ["<think>{{ '\n' }}", "<think>"])
def test_thinking_is_opened_once(ending):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}|" + ending
    prompt = render(QUESTION, tokenizer, instruction="Go. <think>")
    assert prompt.text.count("<think>") == 1
    for response in ("<think>\nSo\n</think>\n3", "\n<think>\nSo\n</think>\n3"):
        whole = prompt.text + tokenizer.decode(response_ids(tokenizer, response, prompt)[:-1])
        assert whole.endswith("|<think>\nSo\n</think>\n3")
    assert tokenizer.decode(response_ids(tokenizer, "<think>", render(QUESTION, tokenizer, "plain"))[:-1]) == "<think>"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% for %}", "{{ messages[0].role }}: no question"]
)
def test_a_template_that_fails_or_leaves_out_the_question_is_refused(template, refused):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    with refused("template"):
        render(QUESTION, tokenizer)


def test_a_template_may_want_content_in_parts_and_may_write_the_day():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = PARTS
    assert render(QUESTION, tokenizer).text == f"{QUESTION}\n{INSTRUCTION}"
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert render(QUESTION, tokenizer, day=date(2026, 1, 2)).text == f"02 Jan 2026 {QUESTION}\n{INSTRUCTION}"
    assert render(QUESTION, tokenizer).text.startswith(f"{date.today():%d %b %Y} ")


def test_no_token_straddles_the_border(refused):
    tokenizer = word_tokenizer(bos=True)
    response = "First, we add"
    prompt = render(QUESTION, tokenizer)
    joined = prompt.token_ids + response_ids(tokenizer, response)
    assert list(joined[:-1]) != tokenizer.encode(prompt.text + response)  # it would have merged over the border
    assert tokenizer.decode(joined, skip_special_tokens=True) == prompt.text + response
    assert joined[: len(prompt.token_ids)] == prompt.token_ids
    with pytest.raises(ParameterError, match="EOS"):
        response_ids(word_tokenizer(eos_token=None), "x")
    # the back-ends take prompts as text, which tokenises to the same ids or is refused
    assert tuple(tokenizer.encode(prompt_text(prompt, tokenizer), add_special_tokens=False)) == prompt.token_ids
    with refused("question"):
        prompt_text(render("1<eos>?", tokenizer, "plain"), tokenizer)


def test_check_fits_counts_and_names_the_longest(refused):
    prompts = [RenderedPrompt("", tuple(range(length))) for length in (3, 7, 9)]
    check_fits(prompts, max_tokens=1, context_length=10)
    check_fits([], max_tokens=4, context_length=10)
    for tokens, said in ((4, "4 does not fit: 2 of 3 prompts"), (0, "at least 1")):
        with refused("max_tokens") as error:
            check_fits(prompts, max_tokens=tokens, context_length=10)
        assert said in str(error.value)
