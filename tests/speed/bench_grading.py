"""Grading beside its peers: serial math-verify, and the math graders of lm-eval 0.4.13 and lighteval 0.13.

    python -m venv peers/lm-eval && peers/lm-eval/bin/pip install "lm-eval[math]==0.4.13"
    python -m venv peers/lighteval && peers/lighteval/bin/pip install "lighteval[math]==0.13.0" "transformers<5" torch
    python tests/speed/bench_grading.py --lm-eval peers/lm-eval/bin/python --lighteval peers/lighteval/bin/python
    python tests/speed/bench_grading.py --problems 5                 # ours and math-verify alone, in two minutes

Each peer needs its own virtual environment (their antlr and transformers differ), and is left out where none is named.
All takes about half an hour on two idle cores. QUAGMIRE_DATA_DIR names the folder with `responses/`.

Throughput: real labelled responses, those of each problem repeated to 64 (`math_cot` has boxes, `gsm8k_gpt3` has not);
then with a number in front of each, so that no two are alike; then both sets whole. A peer grades one response after
the other, as its harness does. `running` starts once the grader has graded something, `from launch` with its process.

Pathological: 200 responses, five of them hard on a grader. One that has not ended after a minute is killed.

lm-eval: `process_results` of its task minerva_math (both of its metrics). lighteval: the metric inside
`pass_at_k_math`, which its MATH-500 and AIME tasks use. Each gets the gold as `\\boxed{gold}`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SETS = ("math_cot", "gsm8k_gpt3")
SAMPLES, ROUNDS, WORKERS = 64, 2, 2
PATIENCE, LONGEST = 60.0, 3600.0  # seconds for the 200 responses, and for one round of throughput
HARD = (  # towers of powers, a factorial, brackets that never close, braces within braces, a tower in plain text
    "\\boxed{9^{9^{9^9}}}",
    "\\boxed{100000000!}",
    "\\[" * 100_000,
    "\\boxed{" + "{" * 400 + "5" + "}" * 400 + "}",
    "The answer is 9^9^9^9",
)

# Each defines grade_all, which yields a verdict for each pair, a name where there is none.
SERIAL = """
def grade_all(golds, responses):
    for gold, response in zip(golds, responses):
        try:
            yield grade(gold, response)
        except BaseException as error:
            yield type(error).__name__
"""
SETUP = {
    "math-verify": SERIAL + """
from math_verify import parse, verify
def grade(gold, response):
    return verify(parse("\\\\boxed{" + gold + "}"), parse(response))
""",
    "lm-eval": SERIAL + """
from lm_eval.tasks.minerva_math.utils import normalize_final_answer, process_results
def grade(gold, response):
    doc = {"solution": "\\\\boxed{" + gold + "}", "answer": normalize_final_answer(gold)}
    return bool(process_results(doc, [response])["math_verify"])
""",
    "lighteval": SERIAL + """
from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.utils.language import Language
METRIC = MultilingualExtractiveMatchMetric(
    language=Language.ENGLISH,
    gold_extraction_target=[ExprExtractionConfig(), LatexExtractionConfig()],
    pred_extraction_target=[ExprExtractionConfig(), LatexExtractionConfig()],
    precision=6,
)
def grade(gold, response):
    doc = Doc(query="", choices=["$\\\\boxed{" + gold + "}$"], gold_index=0)
    return METRIC.compute(doc, ModelResponse(text=[response])) == 1.0
""",
    "ours": """
from quagmire_utils.grading import Grader
grader = Grader(int(sys.argv[3]))
def grade_all(golds, responses):
    for grade in grader.grade(responses, golds):
        verdict = grade.verdict
        yield verdict == "correct" if verdict in ("correct", "wrong", "no_answer") else verdict
""",
}  # fmt: skip
# Reads {"golds": [...], "responses": [...]} from argv[1]; argv[2] is where each verdict goes as soon as it is known.
PROGRAM = """
import json, logging, sys, time
logging.disable(logging.WARNING)
{setup}
work = json.load(open(sys.argv[1]))
with open(sys.argv[2], "w", buffering=1) as out:
    list(grade_all([str(i) + "y" for i in range(64)], ["\\\\boxed{x}"] * 64))
    out.write("ready\\n")
    start, verdicts = time.perf_counter(), []
    for verdict in grade_all(work["golds"], work["responses"]):
        verdicts.append(verdict)
        if len(work["golds"]) <= 1000:
            out.write(json.dumps(verdict) + "\\n")
    end = time.perf_counter()  # CLOCK_MONOTONIC, the same for all processes
    out.write(json.dumps({"seconds": end - start, "ended": end, "verdicts": verdicts}) + "\\n")
"""


@dataclass
class Outcome:
    """One run: seconds of grading, seconds from its launch, the verdicts; or what one that was ended had done."""

    running: float
    launched: float
    verdicts: list = field(default_factory=list)
    note: str = ""


def run(name: str, python: Path, responses: list[str], golds: list[str], patience: float) -> Outcome:
    """Grade in a process of its own, which is killed with its children after `patience` seconds of grading."""
    with tempfile.TemporaryDirectory() as folder:
        work, out = Path(folder) / "work.json", Path(folder) / "out.txt"
        work.write_text(json.dumps({"golds": golds, "responses": responses}))
        code = PROGRAM.replace("{setup}", SETUP[name])
        repo = str(Path(__file__).resolve().parents[2])
        process = subprocess.Popen(
            [str(python), "-c", code, str(work), str(out), str(WORKERS)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **({"PYTHONPATH": repo} if name == "ours" else {}), "HF_HUB_OFFLINE": "1"},
        )
        launched, ready = time.perf_counter(), None
        while process.poll() is None:
            if ready is None and out.exists() and out.read_text():
                ready = time.monotonic()
            if ready is not None and time.monotonic() - ready > patience:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        error = process.communicate()[1]
        lines = [line for line in (out.read_text().splitlines() if out.exists() else []) if line != "ready"]
        try:
            found = json.loads(lines[-1])
            return Outcome(found["seconds"], found["ended"] - launched, found["verdicts"])
        except (IndexError, TypeError, ValueError):
            how = "killed" if process.returncode == -signal.SIGKILL else f"ended with status {process.returncode}"
            if ready is None:
                how = f"did not start: {error.strip().splitlines()[-1:]}"
            return Outcome(float("nan"), float("nan"), note=f"{how} after {len(lines)} of {len(golds)} responses")


def real_responses(name: str, problems: int, samples: int) -> tuple[list[str], list[str]]:
    """`samples` real responses to each of the first `problems` problems, repeated as need be; and the golds."""
    path = Path(os.environ.get("QUAGMIRE_DATA_DIR", "")) / "responses" / f"{name}.jsonl"
    if not path.exists():
        sys.exit(f"no responses at {path}: set QUAGMIRE_DATA_DIR")
    responses, golds = [], []
    for line in path.read_text(encoding="utf-8").splitlines()[:problems]:
        row = json.loads(line)
        responses += (row["responses"] * -(-samples // len(row["responses"])))[:samples]
        golds += [row["gold"]] * samples
    return responses, golds


def throughput(title: str, pythons: dict[str, Path], responses: list[str], golds: list[str]) -> None:
    """Responses per second of each grader, and how often its verdict is not math-verify's."""
    best: dict[str, Outcome] = {}
    for _ in range(ROUNDS):
        for name, python in pythons.items():
            outcome = run(name, python, responses, golds, LONGEST)
            before = best.setdefault(name, outcome)
            before.running = min(before.running, outcome.running)
            before.launched = min(before.launched, outcome.launched)
    print(f"\n{title}: {len(responses)} responses, {WORKERS} workers of ours, best of {ROUNDS}")
    heads = ("running", "ours is", "from launch", "ours is")
    print("  {:12s} {:>18s} {:>9s} {:>13s} {:>9s}   other verdict than math-verify".format("", *heads))
    reference, ours = best["math-verify"], best["ours"]
    for name, outcome in best.items():
        if outcome.note:
            print(f"  {name:12s} {outcome.note}")
            continue
        line = f"  {name:12s} {len(responses) / outcome.running:8,.0f} responses/s"
        line += f" {outcome.running / ours.running:7.1f} x"
        line += f" {outcome.launched:11.1f} s {outcome.launched / ours.launched:7.1f} x"
        # A pair that raises within math-verify is False there and an undecided ERROR with us.
        pairs = list(zip(outcome.verdicts, reference.verdicts, strict=True))
        flipped = sum(isinstance(mine, bool) and mine != theirs for mine, theirs in pairs)
        undecided = sum(not isinstance(mine, bool) for mine, _ in pairs)
        print(f"{line}   {flipped}, undecided {undecided}", flush=True)


def pathological(pythons: dict[str, Path]) -> None:
    """200 responses, five of them hard, spread evenly; the time limit is five seconds, the default of all."""
    responses, golds = real_responses(SETS[0], 50, 4)
    step = len(responses) // len(HARD)
    places = [i * step + step // 2 for i in range(len(HARD))]
    for place, text in zip(places, HARD, strict=True):
        responses[place] = text
    print(f"\n{len(responses)} responses, {len(HARD)} of them pathological, limit 5 s, killed after {PATIENCE:g} s")
    for name, python in pythons.items():
        outcome = run(name, python, responses, golds, PATIENCE)
        said = outcome.note
        if not said:
            hard = [outcome.verdicts[place] for place in places]
            said = f"ended after {outcome.running:6.1f} s ({outcome.running / 5:.2f} x the limit); the five: {hard}"
        print(f"  {name:12s} {said}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", type=Path, help="Python of a virtual environment with lm-eval")
    parser.add_argument("--lighteval", type=Path, help="Python of a virtual environment with lighteval")
    parser.add_argument("--problems", type=int, default=50, help="of each set")
    options = parser.parse_args()
    named = {"lm-eval": options.lm_eval, "lighteval": options.lighteval}
    pythons = {"ours": Path(sys.executable), "math-verify": Path(sys.executable)}
    pythons |= {name: python.absolute() for name, python in named.items() if python}
    for name in named.keys() - pythons.keys():
        print(f"{name}: left out, as no --{name} is given")
    works = {name: (real_responses(name, options.problems, SAMPLES), pythons) for name in SETS}
    whole = [real_responses(name, sys.maxsize, SAMPLES) for name in SETS]  # as many as MATH-500 has, or so
    both = [[item for part in parts for item in part] for parts in zip(*whole, strict=True)]
    works["both, all problems"] = both, {name: pythons[name] for name in ("ours", "math-verify")}
    for name, ((responses, golds), graders) in works.items():
        throughput(f"{name}, repeated to {SAMPLES}", graders, responses, golds)
        throughput(f"{name}, no two alike", graders, [f"{i}. {text}" for i, text in enumerate(responses)], golds)
    pathological(pythons)


if __name__ == "__main__":
    main()
