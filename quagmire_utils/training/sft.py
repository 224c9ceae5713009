"""Supervised fine-tuning on reasoning traces, one checkpoint (a *candidate*) per call. Paper: Sec. 2, App. B.2.

The backend is TRL's `SFTTrainer` on one machine. The loss covers only the response tokens and the end-of-sequence
token; prompts are rendered exactly as for sampling and for the generalization loss.

    train_sft("models/base", traces, "models/candidate", SFTSettings(epochs=2))
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, write_json
from quagmire_utils.core.processes import settle_threads
from quagmire_utils.core.settings import SFTSettings
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.data import Trace
from quagmire_utils.data.pretrained import locate
from quagmire_utils.evaluation.generalization_loss import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenize_traces(
    traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> list[dict[str, list[int]]]:
    """Return rows of `input_ids` and `completion_mask` (1 on response tokens) for `SFTTrainer`.

    Raises ParameterError for a blank trace, and for one longer than `max_length`: truncation would cut off its answer.
    """
    rows = [
        {"input_ids": ids.tolist(), "completion_mask": [0] * prompt + [1] * (ids.size - prompt)}
        for ids, prompt in encode(traces, tokenizer, "auto", progress=False)
    ]
    longest = max(len(row["input_ids"]) for row in rows)
    if max_length is not None and longest > max_length:
        too_long = sum(len(row["input_ids"]) > max_length for row in rows)
        allowed = f"at least {longest} ({too_long} of {len(rows)} traces are longer than it)"
        raise ParameterError("sft.max_length", max_length, allowed)
    return rows


def train_sft(
    model: str | Path | PreTrainedModel,
    traces: Sequence[Trace],
    output: str | Path | None,
    settings: SFTSettings,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, object]:
    """Fine-tune `model` on `traces` and save the checkpoint to the folder `output`.

    A model object is trained in place (and not saved if `output` is None); a path or hub id is loaded first. The folder
    appears only when training has finished, with `sft.json` (also returned): settings, traces, tokens seen, final loss
    in nats per response token, seconds. Raises ParameterError for no traces, traces over `max_length`, or a model
    without its tokenizer.
    """
    if not traces:
        raise ParameterError("traces", reason="there are none to fine-tune on")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedModel
    from trl import SFTConfig, SFTTrainer

    if not isinstance(model, PreTrainedModel):
        model = locate(str(model))
        tokenizer = tokenizer or load_tokenizer(model)
        model = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    elif tokenizer is None:
        raise ParameterError("tokenizer", reason="give it, because the model is an object rather than a path")
    # float32 weights, because small steps on bf16 weights are rounded away; saved in the checkpoint's own type
    own_dtype = model.dtype
    model.float()
    if not torch.cuda.is_available():
        settle_threads(model)
    rows = tokenize_traces(traces, tokenizer, settings.max_length)
    steps = math.ceil(math.ceil(len(rows) / settings.batch_size) * settings.epochs)
    micro_batch = settings.micro_batch_size or settings.batch_size
    arguments = SFTConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "quagmire-sft"),  # required, but nothing is written there
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // micro_batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final_lr_fraction},
        warmup_steps=round(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        completion_only_loss=True,
        adam_beta2=settings.adam_beta2,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=torch.cuda.is_available() and own_dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",
        logging_steps=max(1, steps // 50),
        report_to="none",
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    started = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row["input_ids"]) for row in rows)
    summary = {
        "settings": settings.model_dump(),
        "traces": len(rows),
        "steps": steps,
        # as the paper's budgets count: every token the model was trained on, repeats included
        "tokens": round(tokens * settings.epochs),
        "final_loss": losses[-1] if losses else None,
        "seconds": time.perf_counter() - started,
    }
    model.eval().to(own_dtype)
    if output is not None:
        with atomic_folder(Path(output)) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_json(summary, folder / "sft.json")
    return summary
