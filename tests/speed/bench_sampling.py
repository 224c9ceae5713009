"""Tokens per second of our engines beside `model.generate`, on the same prompts of a micro model.

    OMP_NUM_THREADS=1 python tests/speed/bench_sampling.py      # one core

All take turns after a warm-up; the best of a few rounds counts. The model ends after some tens of tokens, as a trained
one does, and `generate` gets prompts of equal length together and the same batch size."""

import importlib.util
import os
import tempfile

import numpy as np
from timing import in_turns

from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine
from quagmire_utils.training.microlab import build_model, build_tokenizer

PROBLEMS, SAMPLES, ROUNDS = 24, 64, 3


def save_model(folder: str) -> None:
    """A random llama of the study's size that ends after 40 tokens on average."""
    tokenizer = build_tokenizer()
    model = build_model("llama", tokenizer)
    count = round(len(tokenizer) / 40)  # an almost uniform model ends at one token in 40
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 300 + count - 1)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_generate(folder: str):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ends = torch.tensor(model.generation_config.eos_token_id)

    def draw(group: list[Request], params: SamplingParams) -> int:
        prompts = torch.tensor([request.prompt_ids for request in group])
        with torch.inference_mode():
            how = {"temperature": params.temperature, "top_k": 0, "max_new_tokens": params.max_tokens}
            how |= {"do_sample": True, "num_return_sequences": group[0].n, "attention_mask": torch.ones_like(prompts)}
            out = model.generate(prompts, **how)[:, prompts.shape[1] :]
        ended = torch.isin(out, ends)
        return int(torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1]).sum())

    def run(requests: list[Request], params: SamplingParams) -> int:
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            by_length.setdefault(len(request.prompt_ids), []).append(request)
        together = max(1, 512 // requests[0].n)  # rows at once; the engines choose for themselves
        groups = [same[i : i + together] for same in by_length.values() for i in range(0, len(same), together)]
        return sum(draw(group, params) for group in groups)

    return run


def with_engine(engine):
    return lambda requests, params: sum(c.tokens for some in engine.generate(requests, params) for c in some)


def main() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(270, 350, 12 + 4 * (i % 3)).tolist()) for i in range(PROBLEMS)]
    requests = [Request(prompt, SAMPLES, 1000 * i) for i, prompt in enumerate(prompts)]
    params = SamplingParams(max_tokens=96)
    configs = {"transformers": {"engine": "transformers", "device": "cpu"}}
    if importlib.util.find_spec("vllm"):
        configs |= {f"vllm {dtype}": {"engine": "vllm", "dtype": dtype} for dtype in ("float32", "bfloat16")}
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        engines = {name: load_engine(EngineConfig(model=folder, **config)) for name, config in configs.items()}
        runs = {"generate": with_generate(folder)} | {name: with_engine(engine) for name, engine in engines.items()}
        for run in runs.values():
            run(requests[:2], params)
        table = in_turns({name: lambda _, run=run: run(requests, params) for name, run in runs.items()}, ROUNDS)
        for engine in engines.values():
            engine.close()
    print(f"{PROBLEMS} problems x {SAMPLES} samples, {torch.get_num_threads()} thread(s), best of {ROUNDS}")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
