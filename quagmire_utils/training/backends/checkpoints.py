"""Back-ends' checkpoints as our engines take them: the trained weights, everything else from the model they began as.

What a back-end saves beside the weights is not what it was given. LLaMA-Factory writes a chat template into the
tokenizer of a base model that has none, which would make `template="auto"` sample it with other prompts than it was
trained on; it also saves the float32 copy that it trained, twice the size of the model.
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
    """Make `target` of the safetensors files in `weights`, in the precision, and with the configuration, of `model`.

    `notes` (file name -> content) are written beside them as JSON. The folder is complete or not there. Raises
    ParameterError where `weights` has no weights.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig

    from quagmire_utils.engines import check_model, load_config, load_tokenizer, resolve_dtype

    shards = sorted(weights.glob("model*.safetensors"))
    if not shards:
        raise ParameterError(f"{weights} holds no checkpoint: there are no model*.safetensors files")
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
