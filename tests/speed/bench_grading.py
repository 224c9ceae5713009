"""Grading beside its peers: serial math-verify, and the math graders of lm-eval 0.4.13 and lighteval 0.13.

    python -m venv peers/lm-eval && peers/lm-eval/bin/pip install "lm-eval[math]==0.4.13"
    python -m venv peers/lighteval && peers/lighteval/bin/pip install "lighteval[math]==0.13.0" "transformers<5" torch
    python tests/speed/bench_grading.py --lm-eval peers/lm-eval/bin/python --lighteval peers/lighteval/bin/python
    python tests/speed/bench_grading.py --problems 5                 # ours and math-verify alone, in two minutes

Throughput (half an hour): real labelled responses, repeated to 64 for each problem, then with a number in front so that
no two are alike, then both sets whole; a peer grades one after the other. Pathological: 200 responses, five of them
hard; one that has not ended after a minute is killed. Peers: lm-eval's minerva_math, lighteval's `pass_at_k_math`."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

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
    for grade in grader.grade(responses, golds, progress=False):
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
    out.write(json.dumps({"running": end - start, "ended": end, "verdicts": verdicts}) + "\\n")
"""


def run(name: str, python: Path, responses: list[str], golds: list[str], patience: float) -> dict[str, Any]:
    """Grade in a process of its own, killed after `patience` seconds; return its seconds and verdicts, or a note."""
    repo = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": repo} if name == "ours" else {})
    with tempfile.TemporaryDirectory() as folder:
        work, out = Path(folder) / "work.json", Path(folder) / "out.txt"
        work.write_text(json.dumps({"golds": golds, "responses": responses}))
        out.touch()
        command = [str(python), "-c", PROGRAM.replace("{setup}", SETUP[name]), str(work), str(out), str(WORKERS)]
        launched, ready = time.perf_counter(), None
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)
        while process.poll() is None:
            ready = ready or (out.read_text() and time.monotonic())
            if ready and time.monotonic() - ready > patience:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        lines = out.read_text().splitlines()[1:]
        if not process.returncode:
            found = json.loads(lines[-1])
            return found | {"launched": found["ended"] - launched}
        return {"note": f"ended with status {process.returncode} after {len(lines)} of {len(golds)} responses"}


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
    rows = []
    for _ in range(ROUNDS):
        for name, python in pythons.items():
            rows.append({"name": name, **run(name, python, responses, golds, LONGEST)})
    frame = pd.DataFrame(rows)
    verdicts = frame.groupby("name")["verdicts"].first()
    table = frame.groupby("name")[["running", "launched"]].min()
    table["responses/s"] = len(responses) / table["running"]
    for times in ("running", "launched"):
        table[f"ours is, {times}"] = table[times] / table.loc["ours", times]
    # A pair that raises within math-verify is False there and an undecided ERROR with us.
    pairs = {name: list(zip(mine, verdicts["math-verify"], strict=True)) for name, mine in verdicts.items()}
    table["undecided"] = {name: sum(not isinstance(mine, bool) for mine, _ in some) for name, some in pairs.items()}
    table["other verdict than math-verify"] = {
        name: sum(isinstance(mine, bool) and mine != theirs for mine, theirs in some) for name, some in pairs.items()
    }
    print(f"\n{title}: {len(responses)} responses, {WORKERS} workers of ours, best of {ROUNDS}")
    print(table.round(2).to_string(), flush=True)


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
        said = outcome.get("note")
        if not said:
            hard, seconds = [outcome["verdicts"][place] for place in places], outcome["running"]
            said = f"ended after {seconds:6.1f} s ({seconds / 5:.2f} x the limit); the five: {hard}"
        print(f"  {name:12s} {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", type=Path, help="Python of a virtual environment with lm-eval")
    parser.add_argument("--lighteval", type=Path, help="Python of a virtual environment with lighteval")
    parser.add_argument("--problems", type=int, default=50, help="of each set")
    options = parser.parse_args()
    ours = {"ours": Path(sys.executable), "math-verify": Path(sys.executable)}
    named = {"lm-eval": options.lm_eval, "lighteval": options.lighteval}
    pythons = ours | {name: python.absolute() for name, python in named.items() if python}
    works = {name: (real_responses(name, options.problems, SAMPLES), pythons) for name in SETS}
    whole = [real_responses(name, sys.maxsize, SAMPLES) for name in SETS]  # as many as MATH-500 has, or so
    both = [[item for part in parts for item in part] for parts in zip(*whole, strict=True)]
    works["both, all problems"] = both, ours
    for name, ((responses, golds), graders) in works.items():
        throughput(f"{name}, repeated to {SAMPLES}", graders, responses, golds)
        throughput(f"{name}, no two alike", graders, [f"{i}. {text}" for i, text in enumerate(responses)], golds)
    pathological(pythons)


if __name__ == "__main__":
    main()
