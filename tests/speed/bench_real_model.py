"""Engines on a real model without a GPU: python tests/speed/bench_real_model.py (10 minutes; OMP_NUM_THREADS counts).

SmolLM2-135M answers the same word problems in vLLM, in the transformers engine, and behind llama.cpp's server (`pip
install xllamacpp`, else left out), each a process of its own that takes turns. `evaluate`: stored and graded too."""

import importlib.metadata
import importlib.util
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from quagmire_utils.data import load_benchmark
from quagmire_utils.data.pretrained import locate, model_origin
from quagmire_utils.data.prompts import render_problem
from quagmire_utils.engines import EngineConfig, EngineError, Request, SamplingParams, ServerSettings, load_engine

MODEL = "smollm2-135m"
PROBLEMS, SAMPLES, ROUNDS = 8, 16, 3
PARAMS, CONTEXT = SamplingParams(max_tokens=64), 512
SLOTS = 32  # sequences that the server decodes at once
THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def serve(port: int) -> Any:
    """Serve the package's quantised file with llama.cpp; returns the server, which lives as long as its process."""
    import xllamacpp

    ((package, file),) = model_origin(locate(MODEL))["packages"].items()
    params = xllamacpp.CommonParams()
    params.model.path = str(importlib.metadata.distribution(package).locate_file(file))
    params.hostnames, params.port, params.model_alias = ["127.0.0.1"], port, {MODEL}
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    return xllamacpp.Server(params)


def load(name: str) -> tuple[Any, Any]:
    """Return an engine and the server that it talks to, if any, which runs in this process."""
    if name != "server":
        return load_engine(EngineConfig(engine=name, model=MODEL, max_model_len=CONTEXT)), None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = serve(port)
    # llama.cpp's own defaults cut unlikely tokens off
    settings = ServerSettings(tokenizer=MODEL, model=MODEL, extra_body={"top_k": 0, "min_p": 0.0})
    config = EngineConfig(engine="server", model=f"http://127.0.0.1:{port}/v1", server=settings)
    return load_engine(config), server


def work(name: str, pipe: Any) -> None:
    """Load an engine, then draw or evaluate as asked through `pipe`; send seconds, CPU seconds, tokens, GiB."""
    from quagmire_utils.evaluation.evaluate import evaluate
    from quagmire_utils.evaluation.store import SampleStore
    from quagmire_utils.grading import Grader

    started = time.perf_counter()
    engine, _server = load(name)  # the server lives as long as its object
    problems = load_benchmark("asdiv_grade1_2", limit=PROBLEMS)
    prompts = [render_problem(problem, engine.tokenizer).token_ids for problem in problems]
    try:
        engine.generate([Request(prompts[0], 1, 0)], SamplingParams(max_tokens=2))
    except EngineError as error:
        return pipe.send(str(error))
    pipe.send((time.perf_counter() - started, 0.0, 0, 0.0))
    with Grader(1) as grader, tempfile.TemporaryDirectory() as folder:
        grader.grade([r"\boxed{1/2}"], ["0.5"], progress=False)  # its processes are there
        while (task := pipe.recv()) is not None:
            what, round_ = task
            started, used = time.perf_counter(), time.process_time()
            if what == "evaluate":
                store = SampleStore(Path(folder) / f"{round_}")
                how = {"grader": grader, "progress": False}
                counts = evaluate(engine, {"words": problems}, SAMPLES, PARAMS, store, **how)
                tokens = int((counts["n"] * counts["mean_tokens"]).sum().round())
            else:
                requests = [Request(ids, SAMPLES, 10**6 * round_ + 1000 * i) for i, ids in enumerate(prompts)]
                calls = [requests] if what == "draw" else [[request] for request in requests]
                tokens = sum(c.tokens for call in calls for answers in engine.generate(call, PARAMS) for c in answers)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            pipe.send((time.perf_counter() - started, time.process_time() - used, tokens, peak))
    engine.close()
    os._exit(0)  # the server's threads do not end


def main() -> None:
    locate(MODEL)
    context = multiprocessing.get_context("spawn")
    pipes, starts, times, processor, memory = {}, {}, {}, {}, {}
    for name in ("transformers", "vllm", "server"):
        if name == "server" and importlib.util.find_spec("xllamacpp") is None:
            print("server: xllamacpp is not installed")
            continue
        mine, theirs = context.Pipe()
        context.Process(target=work, args=(name, theirs), daemon=name != "transformers").start()
        answer = mine.recv()
        if isinstance(answer, str):
            print(f"{name}: {answer}")
            continue
        pipes[name], starts[name] = mine, answer[0]
    for round_ in range(ROUNDS):
        for name, pipe in pipes.items():
            for what in ("draw", "apart", "evaluate") if name == "transformers" else ("draw",):
                pipe.send((what, round_))
                seconds, used, tokens, memory[name] = pipe.recv()
                times.setdefault((name, what), []).append(seconds / tokens)
                processor.setdefault((name, what), []).append(used / tokens)
    for pipe in pipes.values():
        pipe.send(None)
    print(f"\n{PROBLEMS * SAMPLES} answers of at most {PARAMS.max_tokens} tokens, {THREADS} thread(s)")
    print(f"{'':<14}{'tokens/s':>10}{'a CPU second':>14}{'start s':>10}{'GiB':>8}")
    for name in pipes:
        wall, used = (statistics.median(kind[name, "draw"]) for kind in (times, processor))
        print(f"{name:<14}{1 / wall:>10.0f}{1 / used:>14.0f}{starts[name]:>10.0f}{memory[name]:>8.2f}")
    for kind, unit in ((times, "seconds"), (processor, "processor seconds, without the grader's,")):
        for what, said in (("evaluate", "evaluate"), ("apart", "a call for each problem")):
            pairs = zip(kind["transformers", what], kind["transformers", "draw"], strict=True)
            print(f"{said} over one bare call, {unit} per token: {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
