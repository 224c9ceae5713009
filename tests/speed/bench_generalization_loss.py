"""Speed and memory of the generalization loss against `transformers.Trainer.evaluate` (two minutes, 5 GB).

    python tests/speed/bench_generalization_loss.py

A two-layer Llama with Qwen's vocabulary, so that logits dominate; each side in a process of its own. The Trainer runs
with its defaults: batches of 8 in the order given, and the mean of their means, so its loss is a little off."""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import alone

from quagmire_utils.data import Trace
from quagmire_utils.training.microlab import build_tokenizer

VOCABULARY, CONTEXT = 151_936, 4096
TRACES, LONGEST = 32, 256  # characters (= tokens) of the longest response


def make_traces() -> list[Trace]:
    """Return traces with responses of a quarter of the longest to the longest."""
    generator = random.Random(0)
    text = "".join(generator.choice("0123456789+-*= abcdefgh") for _ in range(LONGEST))
    lengths = [generator.randint(LONGEST // 4, LONGEST) for _ in range(TRACES)]
    return [Trace(str(i), str(i), text[: LONGEST // 4], text[:length]) for i, length in enumerate(lengths)]


def make_model(tokenizer):
    """Return a small random model with a large vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 4, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY}
    config = LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id)
    return LlamaForCausalLM(config).eval()


def ours(folder: str, traces: list[Trace]) -> tuple[float, int]:
    from quagmire_utils.engines import EngineConfig
    from quagmire_utils.evaluation.generalization_loss import generalization_loss

    loss = generalization_loss(EngineConfig(model=folder), traces, progress=False)
    return loss.nll, loss.tokens


def trainers(model_folder: str, traces: list[Trace]) -> tuple[float, int]:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer, TrainingArguments

    from quagmire_utils.data.prompts import render, response_ids

    model, tokenizer = (kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    rows = []
    for trace in traces:
        prompt, response = render(trace.question, tokenizer).token_ids, response_ids(tokenizer, trace.response)
        rows.append({"input_ids": [*prompt, *response], "labels": [*([-100] * len(prompt)), *response]})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        columns = {name: [torch.tensor(row[name]) for row in batch] for name in ("input_ids", "labels")}
        columns["attention_mask"] = [torch.ones_like(ids) for ids in columns["input_ids"]]
        fill = {"labels": -100}
        return {
            name: pad_sequence(one, batch_first=True, padding_value=fill.get(name, 0)) for name, one in columns.items()
        }

    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, prediction_loss_only=True, **quiet)
        trainer = Trainer(model=model, args=arguments, data_collator=collate, eval_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        result = trainer.evaluate()
    return result["eval_loss"], sum(label != -100 for row in rows for label in row["labels"])


def peak() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measured(measure: Callable) -> tuple[float, ...]:
    """Return nats per token, tokens, seconds, processor seconds and MiB of one side, on one thread."""
    import torch

    torch.set_num_threads(1)
    tokenizer, traces = build_tokenizer(), make_traces()
    with tempfile.TemporaryDirectory() as folder:  # each side loads the model from it
        make_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        measure(folder, traces[:1])  # imports and first-call costs
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        before, start, processor = peak(), time.perf_counter(), time.process_time()
        nll, tokens = measure(folder, traces)
        return nll, tokens, time.perf_counter() - start, time.process_time() - processor, peak() - before


def main() -> None:
    sides = {"Trainer": alone(measured, trainers), "ours": alone(measured, ours)}
    titles = ("nats/token", "tokens", "seconds", "processor", "tokens/s", "peak MiB", "speed", "memory")
    print(" " * 13 + "".join(f"{title:>11}" for title in titles))
    _, _, their_seconds, _, their_peak = sides["Trainer"]
    for side, (nll, tokens, seconds, processor, memory) in sides.items():
        figures = f"{nll:11.5f}{tokens:11d}{seconds:11.2f}{processor:11.2f}{tokens / seconds:11.0f}{memory:11.0f}"
        print(f"{side:13}{figures}{their_seconds / seconds:10.2f}x{memory / their_peak:10.2f}x")


if __name__ == "__main__":
    main()
