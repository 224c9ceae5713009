"""Tokens that a killed run draws twice, as a share of all its tokens.

    OMP_NUM_THREADS=1 python tests/speed/bench_restart.py            # some two minutes on an idle core

A run of a micro model is killed at a random moment and started again, ten times over. Each call of the engine is
written down before it begins, so what was lost is what was asked for twice: an upper bound, as if every call had been
killed at its last token. The run has as many chunks as the paper's evaluation of a candidate at 64 samples has by
default: 3,812 problems x 64 / 4,096, about 60. The records are compared with those of an unbroken run.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from quagmire_utils.data import Problem
from quagmire_utils.engines import Engine, EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation.sampling import sample
from quagmire_utils.evaluation.sampling.work import problem_seed
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.training.microlab import build_model, build_tokenizer

PARAMS = SamplingParams(max_tokens=24, seed=1)
SAMPLES, CHUNK, CHUNKS = 64, 256, 60
PROBLEMS = [Problem(f"p{i}", f"{i}+{i}" + "0" * (i % 4), "1") for i in range(CHUNKS * CHUNK // SAMPLES)]


class Logged:
    """An engine that writes down what it is asked, before it begins."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self.engine, self.log = engine, log

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    stream = Engine.stream

    def generate(self, requests, params):
        """The engine's answers."""
        with self.log.open("a") as file:
            file.write(json.dumps([[request.seed, request.n] for request in requests]) + "\n")
        return self.engine.generate(requests, params)


def run(engine: Engine, folder: Path, kill: tuple[int, float] | None = None) -> bool:
    """Sample in a child; whether it finished. kill: so many calls of the engine, and seconds after, that it has."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        sample(
            Logged(engine, log), PROBLEMS, SAMPLES, PARAMS, folder, benchmark="b", chunk_samples=CHUNK, progress=False
        )
        os._exit(0)
    if kill is not None:
        while not log.exists() or log.read_text().count("\n") < kill[0]:
            time.sleep(0.001)
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    """Kill, restart, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of as many runs, one each")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tokenizer = build_tokenizer()
        build_model("llama", tokenizer, layers=1).save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")
        engine = load_engine(EngineConfig(engine="transformers", model=scratch / "model", device="cpu"))
        started = time.perf_counter()
        assert run(engine, scratch / "unbroken")
        duration = time.perf_counter() - started
        unbroken = SampleStore(scratch / "unbroken").read()
        seeds = {problem.id: problem_seed(PARAMS.seed, "b", problem.id) for problem in PROBLEMS}
        drawn = unbroken["problem"].map(seeds) + unbroken["index"]
        tokens = dict(zip(drawn, unbroken["tokens"], strict=True))
        total, rng = sum(tokens.values()), np.random.default_rng(0)
        shares = []
        print(f"{len(unbroken):,} samples, {total:,} tokens, {CHUNKS} chunks; unbroken: {duration:.1f} s")
        for i in range(arguments.kills):
            folder = scratch / f"killed-{i}"
            assert not run(engine, folder, (rng.integers(1, CHUNKS), rng.uniform(0, duration / CHUNKS)))
            assert run(engine, folder)
            calls = [json.loads(line) for line in folder.with_suffix(".log").read_text().splitlines()]
            asked = Counter(seed + j for call in calls for seed, n in call for j in range(n))
            shares.append(sum((times - 1) * tokens[seed] for seed, times in asked.items()) / total)
            assert SampleStore(folder).read().equals(unbroken), "the records differ"
            print(f"kill {i + 1}: at most {100 * shares[-1]:.2f} % of the tokens drawn twice", file=sys.stderr)
    print(f"drawn twice after one kill: at most {100 * max(shares):.2f} %, mean {100 * np.mean(shares):.2f} %")


if __name__ == "__main__":
    main()
