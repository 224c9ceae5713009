"""The whole of an evaluation against bare `LLM.generate`: python tests/speed/bench_evaluate_model.py (5 minutes).

What `evaluate_model` does once a model is loaded (sample into a store, grade, count, measure with intervals) is timed
against `LLM.generate` of the same prompts with the same parameters on the very same vLLM object, which returns token
ids, not even texts, and does nothing with them; once with a seed for every request, as in an evaluation, and once
without. The micro model has random weights and ends its answers by chance. All take turns, and the ratio is that of the
times for one token, best of the rounds. Loading is in none of them. The last columns count the processor time of this
process, engine included, which other work on the machine changes less; the grader's processes are not in it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench_sampling import save_model

from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation import evaluate as evaluation
from quagmire_utils.evaluation import pass_at_k, store
from quagmire_utils.evaluation.measured import evaluation_table
from quagmire_utils.grading import Grader
from quagmire_utils.report import inputs
from quagmire_utils.training import microlab


def bare(engine: object, prompts: list[tuple[int, ...]], n: int, params: SamplingParams, seed: int | None) -> int:
    """`LLM.generate` and nothing else; the number of generated tokens."""
    from vllm import SamplingParams as VLLMSamplingParams
    from vllm import TokensPrompt

    engine._llm.reset_prefix_cache()
    wanted = VLLMSamplingParams(
        n=n,
        temperature=params.temperature,
        max_tokens=params.max_tokens,
        stop_token_ids=engine.ends,
        detokenize=False,
        seed=seed,
    )
    inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
    outputs = engine._llm.generate(inputs, wanted, use_tqdm=False)
    return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)


def main() -> None:
    """Run all in turn and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64, help="of each benchmark")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    params = SamplingParams(max_tokens=arguments.max_tokens)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(str(folder / "model"), mean_tokens=40)
        problems = {
            name: microlab.make_problems(name, microlab.MICRO_BENCHMARKS[name], arguments.problems, seed=0)
            for name in ("sums2", "sums3")
        }
        config = EngineConfig(engine="vllm", model=folder / "model", max_model_len=arguments.max_model_len)
        with closing(load_engine(config)) as engine, Grader() as grader:
            ids = [render(p.question, engine.tokenizer).token_ids for some in problems.values() for p in some]

            def whole(run: int) -> int:
                samples = store.SampleStore(folder / f"samples-{run}")
                counts = evaluation.evaluate(
                    engine, problems, arguments.samples, params, samples, grader=grader, progress=False
                )
                answers = inputs.selected(samples, problems)[1]
                votes = pass_at_k.benchmark_maj_at_k(answers, [arguments.samples])
                evaluation_table(counts, sorted({1, arguments.samples}), votes=votes)
                pass_at_k.bootstrap_intervals(counts)
                return int((counts["n"] * counts["mean_tokens"]).sum().round())

            runs: dict[str, Callable[[int], int]] = {
                "LLM.generate": lambda _: bare(engine, ids, arguments.samples, params, None),
                "the same, seeded": lambda run: bare(engine, ids, arguments.samples, params, run),
                "evaluate_model": whole,
            }
            warm_up, few = SamplingParams(max_tokens=8), {name: some[:2] for name, some in problems.items()}
            evaluation.evaluate(
                engine, few, 8, warm_up, store.SampleStore(folder / "warm-up"), grader=grader, progress=False
            )
            best: dict[str, float] = {}
            processor: dict[str, float] = {}
            tokens: dict[str, int] = {}
            for run in range(arguments.rounds):
                for name, call in runs.items():
                    started, used = time.perf_counter(), time.process_time()
                    tokens[name] = call(run)
                    seconds = (time.perf_counter() - started) / tokens[name]
                    best[name] = min(best.get(name, seconds), seconds)
                    used = (time.process_time() - used) / tokens[name]
                    processor[name] = min(processor.get(name, used), used)
    answers = len(ids) * arguments.samples
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{answers:,} answers to {len(ids)} prompts, {threads} thread(s), best of {arguments.rounds}")
    print(f"{'':<18}{'tokens':>10}{'us/token':>10}{'tokens/s':>11}{'ratio':>8}{'processor us':>14}{'ratio':>8}")
    for name, seconds in best.items():
        ratio, used = seconds / best["LLM.generate"], processor[name] / processor["LLM.generate"]
        print(
            f"{name:<18}{tokens[name]:>10,}{1e6 * seconds:>10.1f}{1 / seconds:>11,.0f}{ratio:>8.2f}"
            f"{1e6 * processor[name]:>14.1f}{used:>8.2f}"
        )


if __name__ == "__main__":
    main()
