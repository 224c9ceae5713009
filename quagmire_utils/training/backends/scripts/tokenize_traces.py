"""Tokenise the traces of this folder with LLaMA-Factory, and compare every token with what sampling will use.

Runs in LLaMA-Factory's environment, before training: `python tokenize_traces.py train.yaml tokens.json`. What it leaves
in `tokenized_path` is what LLaMA-Factory then trains on; where a single token differs it leaves nothing and fails.
"""

import hashlib
import json
import os
import shutil
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tokenising needs no GPU, and one process


def main(config: str, expected: str) -> None:
    """See above."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from omegaconf import OmegaConf

    with open(expected, encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    arguments = OmegaConf.to_container(OmegaConf.load(config))
    target = arguments["tokenized_path"]
    partial = target + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    arguments.update(tokenized_path=partial, use_cpu=True, bf16=False)
    for name in ("fsdp", "fsdp_config"):  # about training only
        arguments.pop(name, None)
    model, data, training, _, _ = get_train_args(arguments)
    tokenizer = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data)
    made = get_dataset(template, model, data, training, stage="sft", **tokenizer)["train_dataset"]
    if len(made) != len(rows):
        sys.exit(f"LLaMA-Factory makes {len(made)} training sequences of {len(rows)} traces")
    for row, (trace, digest) in zip(made, rows, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        prompt = sum(label == -100 for label in labels)
        known = hashlib.sha256(json.dumps([ids[:prompt], ids[prompt:]]).encode()).hexdigest()[:12]
        if known != digest or labels[prompt:] != ids[prompt:]:
            sys.exit(
                f"LLaMA-Factory makes other tokens of trace {trace} than sampling does; it would be trained on the "
                f"prompt {ids[:prompt]} and the response {ids[prompt:]}"
            )
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)
    print(f"{len(rows)} traces: every token is the one that sampling uses")


if __name__ == "__main__":
    main(*sys.argv[1:])
