"""Tokens per second of our engines beside `model.generate`, on the same prompts of a micro model.

    OMP_NUM_THREADS=1 python tests/speed/bench_sampling.py      # one core
    OMP_NUM_THREADS=2 python tests/speed/bench_sampling.py      # two

Every engine draws the same number of samples of the same prompts, after a warm-up; the best of a few rounds counts,
the rounds of all engines taking turns so that a busy moment hurts them alike. The model answers like a trained one:
it ends after some tens of tokens, which is where dropping finished sequences pays. `generate` gets what helps it:
prompts of equal length together, num_return_sequences, and the same batch size.
"""

import argparse
import os
import tempfile
import time

import numpy as np

from quagmire_utils.engines import EngineConfig, Request, SamplingParams, load_engine
from quagmire_utils.training.microlab import build_model, build_tokenizer


def save_model(folder: str) -> None:
    """A random llama of the study's size that ends after 40 tokens on average."""
    tokenizer = build_tokenizer()
    model = build_model("llama", tokenizer)
    count = round(len(tokenizer) / 40)  # an almost uniform model ends at one token in 40
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 300 + count - 1)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_generate(folder: str):
    """The plain way: transformers' own `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)

    def run(requests: list[Request], params: SamplingParams) -> int:
        tokens = 0
        ends = torch.tensor(model.generation_config.eos_token_id)
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            by_length.setdefault(len(request.prompt_ids), []).append(request)
        for group in by_length.values():
            together = max(1, 512 // group[0].n)  # rows at once; the engines choose for themselves
            for start in range(0, len(group), together):
                prompts = torch.tensor([request.prompt_ids for request in group[start : start + together]])
                with torch.inference_mode():
                    out = model.generate(
                        prompts,
                        attention_mask=torch.ones_like(prompts),
                        do_sample=True,
                        temperature=params.temperature,
                        top_k=0,
                        max_new_tokens=params.max_tokens,
                        num_return_sequences=group[0].n,
                    )[:, prompts.shape[1] :]
                ended = torch.isin(out, ends)
                first = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
                tokens += int(first.sum())
        return tokens

    return run


def with_engine(engine):
    """One of ours, texts included."""

    def run(requests: list[Request], params: SamplingParams) -> int:
        return sum(c.tokens for completions in engine.generate(requests, params) for c in completions)

    return run


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-vllm", action="store_true")
    arguments = parser.parse_args()

    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    requests = [
        Request(tuple(rng.integers(270, 350, 12 + 4 * (i % 3)).tolist()), arguments.samples, 1000 * i)
        for i in range(arguments.problems)
    ]
    params = SamplingParams(max_tokens=96)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        engines = [load_engine(EngineConfig(engine="transformers", model=folder, device="cpu"))]
        runs = {"model.generate": with_generate(folder), "transformers": with_engine(engines[0])}
        if not arguments.no_vllm:
            for dtype in ("float32", "bfloat16"):
                engines.append(load_engine(EngineConfig(engine="vllm", model=folder, dtype=dtype)))
                runs[f"vllm {dtype}"] = with_engine(engines[-1])
        best: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for run in runs.values():
            run(requests[:2], params)
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                tokens[name] = run(requests, params)
                best[name] = max(best.get(name, 0.0), tokens[name] / (time.perf_counter() - started))
        for engine in engines:
            engine.close()
    print(
        f"{arguments.problems} problems x {arguments.samples} samples, {threads} thread(s), best of {arguments.rounds}"
    )
    print(f"{'':<16}{'tokens':>9}{'tokens/s':>11}{'ratio':>8}")
    for name, speed in best.items():
        print(f"{name:<16}{tokens[name]:>9,}{speed:>11,.0f}{speed / best['model.generate']:>8.2f}")


if __name__ == "__main__":
    main()
