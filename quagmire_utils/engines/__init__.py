"""Engines turn prompts into sampled answers (paper Sec. 4.1 and App. B.3: vLLM at temperature 1.0).

One interface with three implementations, each imported only when it is asked for:

    engine = load_engine(EngineConfig(engine="vllm", model="path/to/checkpoint"))     # or "transformers"
    engine = load_engine(EngineConfig(engine="server", model="http://127.0.0.1:8000/v1"))    # OpenAI-compatible
    request = Request(prompt_ids=(5, 17, 4), n=64, seed=0)
    [[first, *others]] = engine.generate([request], SamplingParams(temperature=1.0, max_tokens=64))
    engine.close()

`base` says what all engines promise.
"""

# ruff: noqa: F401 - callers import these names from here

from __future__ import annotations

from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.engines.base import (
    Completion,
    Engine,
    EngineConfig,
    EngineError,
    Request,
    SamplingParams,
    ServerSettings,
    check_engine,
)
from quagmire_utils.engines.checkpoints import (
    check_model,
    load_config,
    model_digest,
    resolve_context_length,
    resolve_device,
    resolve_dtype,
)


def load_engine(config: EngineConfig) -> Engine:
    """Load the model into its engine. Raises ParameterError, before any weight is read, if that can't work."""
    config.check()
    if config.engine == "server":
        from quagmire_utils.engines.server import ServerEngine

        return ServerEngine(config)
    if config.engine == "transformers":
        from quagmire_utils.engines.transformers import TransformersEngine

        return TransformersEngine(config)
    from quagmire_utils.engines.vllm import ReplicatedVLLMEngine, VLLMEngine

    return (ReplicatedVLLMEngine if config.data_parallel_size > 1 else VLLMEngine)(config)
