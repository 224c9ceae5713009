"""Export back-ends' checkpoints for our engines: the trained weights, and everything else from the original model.

A back-end changes what it saves beside the weights. LLaMA-Factory writes a chat template into the tokenizer of a base
model that has none, so `template="auto"` would sample it with other prompts than it was trained on. It also saves the
float32 copy that it trained, twice the size of the model.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import write_json


def export_checkpoint(weights: Path, model: str, target: Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write the folder `target`: the safetensors of `weights` in the precision of `model`, and its configuration.

    `notes` (file name -> content) are added as JSON. The folder appears whole. Raises ParameterError if `weights` holds
    no weights.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig

    from quagmire_utils.engines import check_model, load_config, load_tokenizer, resolve_dtype

    shards = sorted(weights.glob("model*.safetensors"))
    if not shards:
        raise ParameterError("weights", str(weights), reason=f"{weights} has no model*.safetensors files")
    config = load_config(model)
    dtype = getattr(torch, resolve_dtype(config, "auto"))
    scratch = target.with_name(target.name + ".saving")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for shard in shards:
        tensors = load_file(shard)
        save_file(
            {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
            scratch / shard.name,
            metadata={"format": "pt"},
        )
    for index in weights.glob("model*.safetensors.index.json"):
        shutil.copy2(index, scratch)
    config.save_pretrained(scratch)
    load_tokenizer(model).save_pretrained(scratch)
    with contextlib.suppress(OSError):  # a model without a generation_config.json
        GenerationConfig.from_pretrained(model).save_pretrained(scratch)
    for name, content in (notes or {}).items():
        write_json(content, scratch / name)
    check_model(scratch)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
