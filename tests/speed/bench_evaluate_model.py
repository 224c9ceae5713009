"""The whole of an evaluation against bare `LLM.generate`: python tests/speed/bench_evaluate_model.py (5 minutes).

Both use the same vLLM object, prompts and parameters; bare calls return token ids, once with a seed for every request
and once without. All take turns; the ratio is that of the times for one token, without loading and grader processes."""

import tempfile
from contextlib import closing
from pathlib import Path

from bench_sampling import save_model
from timing import in_turns

from quagmire_utils.data.prompts import render
from quagmire_utils.engines import EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation import evaluate as evaluation
from quagmire_utils.evaluation import pass_at_k, store
from quagmire_utils.evaluation.measured import evaluation_table
from quagmire_utils.grading import Grader
from quagmire_utils.report import inputs
from quagmire_utils.training import microlab

PROBLEMS, SAMPLES, ROUNDS = 64, 64, 3  # problems of each benchmark
PARAMS = SamplingParams(max_tokens=96)


def bare(engine: object, prompts: list[tuple[int, ...]], seed: int | None) -> int:
    """`LLM.generate` and nothing else; the number of generated tokens."""
    from vllm import SamplingParams as VLLMSamplingParams
    from vllm import TokensPrompt

    engine._llm.reset_prefix_cache()
    drawing = {"temperature": PARAMS.temperature, "max_tokens": PARAMS.max_tokens, "stop_token_ids": engine.ends}
    wanted = VLLMSamplingParams(n=SAMPLES, **drawing, detokenize=False, seed=seed)
    outputs = engine._llm.generate(
        [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts], wanted, use_tqdm=False
    )
    return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(str(folder / "model"))
        problems = {
            name: microlab.make_problems(name, microlab.MICRO_BENCHMARKS[name], PROBLEMS, seed=0)
            for name in ("sums2", "sums3")
        }
        config = EngineConfig(engine="vllm", model=folder / "model", max_model_len=512)
        with closing(load_engine(config)) as engine, Grader() as grader:
            ids = [render(p.question, engine.tokenizer).token_ids for some in problems.values() for p in some]
            how = {"grader": grader, "progress": False}

            def whole(run: int) -> int:
                samples = store.SampleStore(folder / f"samples-{run}")
                counts = evaluation.evaluate(engine, problems, SAMPLES, PARAMS, samples, **how)
                votes = pass_at_k.benchmark_maj_at_k(inputs.selected(samples, problems)[1], [SAMPLES])
                evaluation_table(counts, [1, SAMPLES], votes=votes)
                pass_at_k.bootstrap_intervals(counts)
                return int((counts["n"] * counts["mean_tokens"]).sum().round())

            warm_up, few = store.SampleStore(folder / "warm-up"), {name: some[:2] for name, some in problems.items()}
            evaluation.evaluate(engine, few, 8, SamplingParams(max_tokens=8), warm_up, **how)
            runs = {"LLM.generate": lambda _: bare(engine, ids, None), "seeded": lambda run: bare(engine, ids, run)}
            table = in_turns({**runs, "evaluate_model": whole}, ROUNDS)
    print(f"{len(ids) * SAMPLES:,} answers to {len(ids)} prompts, best of {ROUNDS}\n{table.round(2).to_string()}")


if __name__ == "__main__":
    main()
