"""A random micro model with exactly known answers, for the tests of the engines."""

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from quagmire_utils.training.microlab import build_model, build_tokenizer

PROMPT = tuple(build_tokenizer().encode("12+3=?"))


def peaked(architecture="qwen3", **changes):
    """A random model with a few likely next tokens and many unlikely ones, and with two end tokens."""
    tokenizer = build_tokenizer()
    config = build_model(architecture, tokenizer).config
    config = type(config)(**{**config.to_dict(), "tie_word_embeddings": False, "initializer_range": 0.02, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(12)
        likely = model(torch.tensor([PROMPT])).logits[0, -1].argsort(descending=True)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, int(likely[3])]
    return model, tokenizer


def save_peaked(path, architecture="qwen3", **changes):
    model, tokenizer = peaked(architecture, **changes)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _filtered(logits, temperature, top_p):
    """Next-token probabilities in float64, (rows, vocabulary), by the definition of temperature and top-p."""
    scaled = logits.double().numpy() / temperature
    p = np.exp(scaled - scaled.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row in p:
        order = np.argsort(-row)
        kept = order[: np.searchsorted(np.cumsum(row[order]), top_p) + 1] if top_p < 1 else order
        row[np.setdiff1d(order, kept)] = 0
        row /= row.sum()
    return p


def exact_answers(**changes):
    """distribution(temperature, top_p) -> {answer: probability} over all answers of at most two tokens; end tokens."""
    model, _ = peaked(**changes)
    ends = set(model.generation_config.eos_token_id)
    with torch.no_grad():
        first = model(torch.tensor([PROMPT])).logits[:, -1]
        second = model(torch.tensor([[*PROMPT, token] for token in range(first.shape[-1])])).logits[:, -1]

    def distribution(temperature, top_p):
        p1, p2 = _filtered(first, temperature, top_p)[0], _filtered(second, temperature, top_p)
        answers = {(a,): p1[a] for a in ends}
        answers |= {(a, b): p1[a] * p2[a, b] for a in range(len(p1)) if a not in ends for b in range(len(p1))}
        return {answer: p for answer, p in answers.items() if p > 0}

    return distribution, ends


def chi_square_p(observed, expected):
    """p-value of counts against expected counts (dicts over outcomes), outcomes expected fewer than 5 times pooled."""
    assert set(observed) <= set(expected), "an outcome of probability zero was drawn"
    e = np.array(list(expected.values()))
    o = np.array([observed.get(outcome, 0) for outcome in expected])
    rare = e < 5
    o, e = (np.append(counts[~rare], [counts[rare].sum()] * int(rare.any())) for counts in (o, e))
    assert len(o) > 5, "too few cells to test anything"
    return stats.chisquare(o, e * o.sum() / e.sum()).pvalue
