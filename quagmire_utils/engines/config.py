"""How to load an engine and how to sample from it: two frozen models that are made once and passed whole.

config = EngineConfig(engine="vllm", model="path/to/checkpoint", max_model_len=4096)
params = SamplingParams(temperature=1.0, max_tokens=2048)            # paper App. B.3: temperature 1.0
EngineConfig(engine="server", model="http://127.0.0.1:8000/v1", server=ServerSettings(model="qwen"))
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Flag, Integer, NonNegative, Settings, Share
from quagmire_utils.data.pretrained import locate
from quagmire_utils.engines.checkpoints import check_base_url, check_model

EngineName = Literal["transformers", "vllm", "server"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ENGINES: tuple[str, ...] = get_args(EngineName)


class ServerSettings(Settings):
    """What to know about a server besides its address."""

    model: str | None = None  # the name it serves the model under; None: the only one that it serves
    tokenizer: str | None = None  # the model's, a folder or hub id; None: where the server says the model is
    extra_body: dict[str, Any] = Field(default={})  # further fields of each call, such as {"top_k": -1}
    tries: Count = 25  # of one call: about three minutes

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _tokenizer_as_text(cls, value: Any) -> Any:
        return locate(str(value)) if isinstance(value, str | Path) else value


class EngineConfig(Settings):
    """What loads an engine: the model, and how it is run. Made once and passed whole."""

    engine: EngineName = "vllm"
    # a folder, a hub id, or a name of `data.pretrained`, which becomes its folder; for "server", the address of an
    # OpenAI-compatible endpoint
    model: str
    revision: str | None = None  # of a hub id: branch, tag or commit; for "server", of the tokenizer
    dtype: Dtype = "auto"  # "auto": the checkpoint's own; float32 on a CPU that is slow in it
    device: str = "auto"  # "auto": cuda where there is one, otherwise the CPU
    max_model_len: Annotated[Integer, Field(ge=2)] | None = None  # tokens of prompt and answer; None: model's
    batch_size: Count | None = None  # sequences in flight; None: the engine's own choice
    template: Literal["auto", "chat", "plain"] = "auto"  # how prompts are rendered; "auto": chat where there is one
    trust_remote_code: Flag = False  # True runs Python code that comes with the model
    tensor_parallel_size: Count = 1  # vllm: GPUs that share a copy of the model
    data_parallel_size: Count = 1  # vllm: copies on this machine that share the work
    ray: str | None = None  # "auto" or the address of a Ray cluster whose nodes do the work
    replicas: Count | None = None  # copies on the Ray cluster; None: as many as it has room for
    server: ServerSettings | None = None  # for engine "server"; None: the defaults

    @field_validator("model", mode="before")
    @classmethod
    def _model_as_text(cls, value: Any) -> Any:
        if isinstance(value, Path):
            if not value.expanduser().exists():  # as text it could be taken for a hub id
                raise ValueError(f"there is no folder {value}")
            return str(value)
        return locate(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_combinations(self) -> EngineConfig:
        for name in ("tensor_parallel_size", "data_parallel_size"):
            if getattr(self, name) > 1 and self.engine != "vllm":
                raise ParameterError(name, getattr(self, name), f"1 for engine {self.engine}; only vllm allows more")
        if self.engine == "server":
            check_base_url(self.model)
            for name in ("dtype", "device"):
                if getattr(self, name) != "auto":
                    raise ParameterError(name, getattr(self, name), "auto for engine server: the server chooses it")
        elif self.server is not None:
            raise ParameterError("server", reason=f"these settings are for engine server, not {self.engine}")
        if self.ray is not None and (self.engine == "server" or self.data_parallel_size > 1):
            raise ParameterError(
                "ray", self.ray, reason="it cannot be combined with engine server or data_parallel_size"
            )
        if self.replicas is not None and self.ray is None:
            raise ParameterError("replicas", self.replicas, "unset without ray")
        return self

    def check(self) -> None:
        """Raise ParameterError unless the engine is installed and the model is a whole checkpoint or may be a hub id.

        No weights are read and no server is asked.
        """
        check_engine(self.engine)
        if self.engine != "server":
            check_model(self.model)


class SamplingParams(Settings):
    """How answers are drawn. The paper: temperature 1.0, no top-p and no top-k (App. B.3)."""

    temperature: NonNegative = 1.0  # 0 takes the most likely token
    top_p: Share = 1.0  # the smallest set of tokens with this probability
    max_tokens: Count = 1024  # generated tokens, the end-of-sequence token included
    seed: Integer = 0  # each problem's seed is derived from it; engines use Request.seed


def check_engine(name: str) -> None:
    """Raise ParameterError for an engine that does not exist or whose library is not installed."""
    if name not in ENGINES:
        raise ParameterError("engine", name, f"one of {', '.join(ENGINES)}")
    if importlib.util.find_spec({"server": "openai"}.get(name, name)) is None:
        remedy = "`pip install -e '.[server]'`" if name == "server" else "`./reproduce.sh setup`"
        raise ParameterError("engine", name, reason=f"{name} is not installed; {remedy} installs it where possible")
