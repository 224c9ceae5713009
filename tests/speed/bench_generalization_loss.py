"""Speed and memory of the generalization loss against `transformers.Trainer.evaluate` on the same traces and model.

A two-layer Llama with a vocabulary of 151,936 entries (Qwen's), so that logits dominate as they do in real models of
this kind. Each side runs in a process of its own: peak memory is that process's peak, less what it held when model
and data were ready. The Trainer runs with its defaults: batches of 8 in the order given, and the mean of their means
(so its loss is a little off). On a busy machine compare the seconds of the processor.

Run by hand, from the repository's root (two minutes, 5 GB):

    python tests/speed/bench_generalization_loss.py [--traces 32] [--longest 256] [--threads 1] [--dtype float32]
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VOCABULARY = 151_936
CONTEXT = 4096


def _data(count: int, longest: int) -> list:
    import random

    from quagmire_utils.data import Trace

    generator = random.Random(0)
    text = "".join(generator.choice("0123456789+-*= abcdefgh") for _ in range(longest))
    return [
        Trace(str(i), str(i), text[: longest // 4], text[: generator.randint(longest // 4, longest)])
        for i in range(count)
    ]


def _model(tokenizer, dtype: str):
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
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def _ours(model, tokenizer, traces) -> tuple[float, int]:
    from quagmire_utils.evaluation.generalization_loss import generalization_loss

    loss = generalization_loss(model, tokenizer, traces, progress=False)
    return loss.nll, loss.tokens


def _trainers(model, tokenizer, traces) -> tuple[float, int]:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from quagmire_utils.data.prompts import render, response_ids

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
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            prediction_loss_only=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, data_collator=collate, eval_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        result = trainer.evaluate()
    return result["eval_loss"], sum(sum(label != -100 for label in row["labels"]) for row in rows)


SIDES = {"ours": _ours, "Trainer": _trainers}


def _run(side: str, options: argparse.Namespace, results: multiprocessing.Queue) -> None:
    import torch

    from quagmire_utils.training.microlab import build_tokenizer

    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    model, traces = _model(tokenizer, options.dtype), _data(options.traces, options.longest)
    measure = SIDES[side]
    measure(model, tokenizer, traces[:1])  # imports and first-call costs
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = _peak()
    start, processor = time.perf_counter(), time.process_time()
    nll, tokens = measure(model, tokenizer, traces)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    results.put((nll, tokens, seconds, processor, _peak() - before))


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
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    measured = {}
    for side in SIDES:
        results = context.Queue()
        process = context.Process(target=_run, args=(side, options, results))
        process.start()
        while (measured_side := _received(results)) is None:
            if not process.is_alive():
                sys.exit(f"{side}: the process ended with {process.exitcode} (too little memory?)")
        measured[side] = measured_side
        process.join()
    titles = ("nats/token", "tokens", "seconds", "processor", "tokens/s", "peak MiB", "speed", "memory")
    print(" " * 13 + "".join(f"{title:>11}" for title in titles))
    _, _, their_seconds, _, their_peak = measured["Trainer"]
    for side, (nll, tokens, seconds, processor, peak) in measured.items():
        figures = f"{nll:11.5f}{tokens:11d}{seconds:11.2f}{processor:11.2f}{tokens / seconds:11.0f}{peak:11.0f}"
        print(f"{side:13}{figures}{their_seconds / seconds:10.2f}x{peak / their_peak:10.2f}x")


def _received(results: multiprocessing.Queue) -> tuple | None:
    try:
        return results.get(timeout=1)
    except queue.Empty:
        return None


if __name__ == "__main__":
    main()
