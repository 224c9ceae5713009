"""A process that samples and grades in children of its own, for tests that kill them (`python crash_worker.py MODEL`).

A line of input, a folder, is one life: it answers with the child's id at once, and with its exit status at the end."""

import json
import os
import sys
from pathlib import Path

from quagmire_utils.data import Problem
from quagmire_utils.engines import Engine, EngineConfig, SamplingParams
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.sampling import sample
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grade, Verdict

PROBLEMS = [Problem(id=f"p{i}", question=f"{i}+{i}" + "0" * (i % 4), answer=str(i % 7)) for i in range(12)]
PARAMS = SamplingParams(max_tokens=20, seed=1)
SAMPLES, CHUNK = 48, 32  # of each problem, a chunk of 32 samples and one of 16
CHUNKS = 24


def grade(responses, problems, answer="any"):
    """Verdicts of math-verify, in this process; a random model boxes nothing, so an answer is made of the text."""
    from math_verify import parse, verify

    grades = []
    for response, problem in zip(responses, problems, strict=True):
        found = parse(f"\\boxed{{{len(response) % 7}}}", parsing_timeout=None)
        right = verify(parse(f"\\boxed{{{problem.answer}}}", parsing_timeout=None), found, timeout_seconds=None)
        grades.append(Grade(Verdict.CORRECT if right else Verdict.WRONG, str(found[-1])))
    return grades


def draw(engine, folder):
    arguments = {"benchmark": "b", "chunk_samples": CHUNK, "progress": False}
    return sample(engine, PROBLEMS, SAMPLES, PARAMS, folder, **arguments)


def live(engine, folder):
    store = draw(engine, folder)
    grade_store(store, {"b": PROBLEMS}, grade, progress=False)


def save_model(folder, seed=0):
    """Save a random micro model whose answers vary in length; return its folder."""
    import torch

    from quagmire_utils.training.microlab import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    model = build_model("llama", tokenizer, layers=2, seed=seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Wrapped:
    """An engine with a `generate` of its own."""

    stream = Engine.stream

    def __init__(self, engine):
        self.engine, self.calls = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)


def load(model):
    import torch

    from quagmire_utils.engines import load_engine

    torch.set_num_threads(1)
    return load_engine(EngineConfig(engine="transformers", model=model, device="cpu"))


def fill_disk(model, folder, out):
    """Sample and grade on a file system that gets full on the way, twice; print the sentences, save the records."""
    engine, folder = load(model), Path(folder)
    for left, work in ((100_000, "sampling"), (5_000, "grading")):
        facts = os.statvfs(folder)
        ballast = folder / "ballast"
        ballast.write_bytes(b"\0" * (facts.f_bavail * facts.f_frsize - left))
        before = len(SampleStore(folder / "store").existing())
        try:
            live(engine, folder / "store")
        except OSError as error:
            print(json.dumps([work, error.errno, str(error), before, len(SampleStore(folder / "store").existing())]))
        ballast.unlink()
        if work == "sampling":
            draw(engine, folder / "store")
    live(engine, folder / "store")
    SampleStore(folder / "store").read().to_pickle(out)
    print(json.dumps([file.name for file in (folder / "store").glob(".*.tmp")]))


def main():
    import math_verify  # noqa: F401  so that no child has to

    engine = load(sys.argv[1])
    grade(["1"], PROBLEMS[:1])
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(engine, line.strip())
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
