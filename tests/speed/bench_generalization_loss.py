"""Speed and memory of the generalization loss against `transformers.Trainer.evaluate` on the same traces and model.

A two-layer Llama with a vocabulary of 151,936 entries (Qwen's), so that logits dominate as they do in real models of
this kind. Each side runs in a process of its own: peak memory is that process's peak, less what it held when model
and data were ready. Run by hand, from the repository's root (a minute or two, 5 GB):

    python tests/speed/bench_generalization_loss.py [--traces 32] [--longest 256] [--threads 1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VOCABULARY = 151_936
CONTEXT = 4096


def _data(count: int, longest: int) -> list:
    import random

    from quagmire_utils.benchmarks import Trace

    generator = random.Random(0)
    text = "".join(generator.choice("0123456789+-*= abcdefgh") for _ in range(longest))
    return [
        Trace(str(i), str(i), text[: longest // 4], text[: generator.randint(longest // 4, longest)])
        for i in range(count)
    ]


def _model(tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def _ours(model, tokenizer, traces) -> tuple[float, int]:
    from quagmire_utils.generalization_loss import generalization_loss

    loss = generalization_loss(model, tokenizer, traces, progress=False)
    return loss.nll, loss.tokens


def _trainers(model, tokenizer, traces) -> tuple[float, int]:
    import torch
    from transformers import Trainer, TrainingArguments

    from quagmire_utils.prompts import render, response_ids

    rows = []
    for trace in traces:
        prompt, response = render(trace.question, tokenizer).token_ids, response_ids(tokenizer, trace.response)
        rows.append({"input_ids": [*prompt, *response], "labels": [*([-100] * len(prompt)), *response]})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        padded = {"input_ids": 0, "labels": -100}
        tensors = {
            key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in batch])
            for key, fill in padded.items()
        }
        tensors["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        )
        return tensors

    with tempfile.TemporaryDirectory() as folder:
        # Its defaults otherwise: batches of 8, in the order given.
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            prediction_loss_only=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        result = Trainer(model=model, args=arguments, data_collator=collate, eval_dataset=rows).evaluate()
    return result["eval_loss"], sum(sum(label != -100 for label in row["labels"]) for row in rows)


def _run(side: str, count: int, longest: int, threads: int, results: multiprocessing.Queue) -> None:
    import torch

    from quagmire_utils.microlab import build_tokenizer

    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    model, traces = _model(tokenizer), _data(count, longest)
    measure = {"ours": _ours, "Trainer": _trainers}[side]
    measure(model, tokenizer, traces[:1])  # imports and first-call costs
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = _peak()
    start = time.perf_counter()
    nll, tokens = measure(model, tokenizer, traces)
    results.put((nll, tokens, time.perf_counter() - start, _peak() - before))


def _peak() -> float:
    """Peak resident memory of this process, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Measure both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=32)
    parser.add_argument("--longest", type=int, default=256, help="characters (= tokens) of the longest response")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    measured = {}
    for side in ("ours", "Trainer"):
        results = context.Queue()
        process = context.Process(target=_run, args=(side, options.traces, options.longest, options.threads, results))
        process.start()
        measured[side] = results.get()
        process.join()
    print(f"{'':10}{'nats/token':>12}{'tokens':>9}{'seconds':>9}{'tokens/s':>10}{'peak MiB':>10}")
    for side, (nll, tokens, seconds, peak) in measured.items():
        print(f"{side:10}{nll:12.5f}{tokens:9d}{seconds:9.2f}{tokens / seconds:10.0f}{peak:10.0f}")
    ours, trainers = measured["ours"], measured["Trainer"]
    print(f"speed x{trainers[2] / ours[2]:.2f}, memory x{ours[3] / trainers[3]:.2f}")


if __name__ == "__main__":
    main()
