"""What a checkpoint's files say and libraries miss: its tokenizer, the end of a turn, how a CPU computes it best."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from example_model import PROMPT, peaked
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoTokenizer

from quagmire_utils.core.tokenizer import PROBE, load_tokenizer
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, checkpoints, load_engine, resolve_dtype

TEXTS = [PROBE, "It is 456912.", "第一步：12 + 30 = 42。\n\n答案", "for i in range(10):\n    print(i)\n", " a  b\tc "]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def _byte_level(normalizer=None):
    """A tokenizer of the GPT-2 kind, as Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    specials = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "It is 456912. The answer is 12. "] * 3, trainer)
    return tokenizer


def _word_marks():
    """A tokenizer of the Llama 2 kind: spaces as word marks, bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(["▁It▁is▁456912. ▁The▁answer▁is▁12."] * 3, trainer)
    return tokenizer


def _save(folder, tokenizer, model_type, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    CONFIG_MAPPING[model_type]().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", **config}))
    return folder


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "right"),
    [
        ("llama", "LlamaTokenizerFast", False),  # R1-Distill-Llama
        ("qwen2", "LlamaTokenizerFast", False),  # R1-Distill-Qwen
        ("gemma", None, False),
        ("llama", "PreTrainedTokenizerFast", True),
        ("gpt2", "GPT2Tokenizer", True),
    ],
)
def test_texts_become_the_ids_of_the_models_own_file(tmp_path, model_type, tokenizer_class, right):
    named = {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    file = _byte_level()
    file.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    _save(tmp_path, file, model_type, chat_template=CHATML, bos_token="<|begin|>", **named)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert right == (type(ours) is type(theirs))
    for text in TEXTS:
        ids = file.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, clean_up_tokenization_spaces=False) == text
    assert ours("1").input_ids == [0, *file.encode("1", add_special_tokens=False).ids]  # with the file's BOS
    assert (ours.eos_token, ours.eos_token_id, ours.chat_template) == ("<|endoftext|>", 1, CHATML)
    assert ours.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [2, 3]
    assert render("1+1?", ours).token_ids[0] == 2


@pytest.mark.parametrize(
    ("file", "model_type", "config"),
    [
        (_word_marks(), "llama", {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"}),
        (_byte_level(normalizers.NFC()), "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
    ],
)
def test_tokenizers_of_the_usual_kinds_load(tmp_path, file, model_type, config):
    ours = load_tokenizer(_save(tmp_path, file, model_type, **config))
    for text in TEXTS:
        ids = file.encode(text).ids
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, clean_up_tokenization_spaces=False) == file.decode(ids, skip_special_tokens=False)


def test_a_tokenizer_that_transformers_cannot_make_of_the_file_is_refused(tmp_path, refused):
    _save(tmp_path, _byte_level(), "llama", added_tokens_decoder={"419": {"content": "456"}})
    with refused("model"):
        load_tokenizer(tmp_path)


def test_nothing_loads_a_tokenizer_otherwise():
    package = Path(checkpoints.__file__).parents[1]
    users = [file.name for file in package.rglob("*.py") if re.search(r"\bAutoTokenizer\b", file.read_text())]
    assert sorted(users) == ["pretrained.py", "tokenizer.py"]  # the former makes the file that the latter checks


def _turns(user, assistant):
    return (
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}{{% endfor %}}"
    )


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (_turns("[INST] {{ m.content }} [/INST]", " {{ m.content }} <|im_end|>"), "<|im_end|>"),
        (_turns("<|begin|>{{ m.content }}", "{{ m.content }}{{ '' if loop.last else '<|im_end|>' }}"), "<|im_end|>"),
        (_turns("{{ m.content }}", "{{ m.content }}{{ '<|begin|>' if loop.last else '<|im_end|>' }}"), "<|begin|>"),
        (_turns("<|im_start|>{{ m.content }}", "<|im_end|>{{ m.content }}"), None),  # the next turn's opening
        (None, None),
    ],
)
def test_the_token_that_a_template_writes_after_an_answer(tmp_path, template, end):
    tokenizer = load_tokenizer(_save(tmp_path, _byte_level(), "llama", tokenizer_class="PreTrainedTokenizerFast"))
    tokenizer.chat_template = template
    found = checkpoints.turn_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end


def test_an_answer_ends_with_its_turn(tmp_path):
    """`<|system|>`, which is no EOS of any file, closes a turn in this template, and the model likes to write it."""
    model, tokenizer = peaked()
    end = tokenizer.convert_tokens_to_ids("<|system|>")
    likely = max(model.generation_config.eos_token_id)
    with torch.no_grad():
        model.lm_head.weight[[end, likely]] = model.lm_head.weight[[likely, end]]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}<|system|>{% endfor %}"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = load_engine(EngineConfig(engine="transformers", model=tmp_path, device="cpu"))
    assert engine.ends == [tokenizer.eos_token_id, end]
    [answers] = engine.generate_ids([Request(PROMPT, 200, 0)], SamplingParams(max_tokens=12))
    assert sum(ids[-1] == end for ids in answers) > 20
    assert not any(end in ids[:-1] for ids in answers)


@pytest.mark.parametrize(
    ("own", "asked", "device", "flags", "computed"),
    [
        ("bfloat16", "auto", "cpu", {"avx2"}, "float32"),
        ("bfloat16", "auto", "cpu", {"avx512_bf16"}, "bfloat16"),
        ("float16", "auto", "cpu", {"avx512_bf16"}, "float32"),
        ("bfloat16", "auto", "cuda", set(), "bfloat16"),
        ("bfloat16", "auto", "", set(), "bfloat16"),  # what a checkpoint is saved in
    ],
)
def test_the_type_to_compute_in(monkeypatch, own, asked, device, flags, computed):
    monkeypatch.setattr(checkpoints, "cpu_flags", lambda: flags)
    assert resolve_dtype(transformers.LlamaConfig(dtype=own), asked, device) == computed


def test_the_engine_computes_in_it(tmp_path, monkeypatch):
    model, tokenizer = peaked()
    model.bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = EngineConfig(engine="transformers", model=tmp_path, device="cpu")
    for flags, dtype in ((set(), torch.float32), ({"avx512_bf16"}, torch.bfloat16)):
        monkeypatch.setattr(checkpoints, "cpu_flags", lambda flags=flags: flags)
        engine = load_engine(config)
        assert engine.module.dtype == dtype
        assert engine.dtype == str(dtype).removeprefix("torch.")  # which a store notes
