"""How fast is grading? Responses per second beside a plain serial loop of math-verify's parse and verify.

    python tests/speed/bench_grading.py                     # a minute; math_cot in QUAGMIRE_DATA_DIR
    python tests/speed/bench_grading.py responses.jsonl     # lines with "gold" and "responses"

The responses of each problem are repeated to 64, as different strings in memory. Two plain loops: the one that users
write (both sides parsed for each response) and one that parses each gold once. A second table has 64 different texts a
problem. The plain loops are warm, so `with their start` has our imports against none of theirs.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quagmire_utils.grading import Grader, Verdict

SAMPLES = 64
logging.disable(logging.WARNING)


def plain(responses: list[str], golds: list[str], gold_once: bool) -> list[bool]:
    """Return the verdicts of a serial loop without math-verify's own timers, which would only slow it."""
    from math_verify import parse, verify

    verdicts, last, gold = [], None, None
    for response, text in zip(responses, golds, strict=True):
        if text != last or not gold_once:
            last, gold = text, parse(f"\\boxed{{{text}}}", parsing_timeout=None)
        verdicts.append(verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None))
    return verdicts


def timed(run: Callable[[], list]) -> tuple[float, list]:
    """Return the seconds of the best of three runs, and what they return."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def compare(title: str, responses: list[str], golds: list[str]) -> None:
    """Print the table for one set of responses, and stop if a verdict differs."""
    print(f"\n{title}: {len(responses)} responses, {sum(map(len, responses)) / len(responses):.0f} characters each")
    start = time.perf_counter()
    plain(responses, golds, gold_once=False)
    rows = [("plain loop, its first run in this process", time.perf_counter() - start)]
    base, expected = timed(lambda: plain(responses, golds, gold_once=False))
    rows.append(("plain loop, parse(gold) each time", base))
    rows.append(("plain loop, parse(gold) once a problem", timed(lambda: plain(responses, golds, gold_once=True))[0]))
    for workers in sorted({1, os.cpu_count() or 1}):
        start = time.perf_counter()
        with Grader(workers) as grader:
            grades = grader.grade(responses, golds)
            rows.append((f"grade, {workers} worker(s), with their start", time.perf_counter() - start))
            seconds, grades = timed(lambda grader=grader: grader.grade(responses, golds))
        rows.append((f"grade, {workers} worker(s), running", seconds))
        if [grade.verdict == Verdict.CORRECT for grade in grades] != expected:
            sys.exit("verdicts differ from the plain loop")
    for name, seconds in rows:
        print(f"  {name:42s} {len(responses) / seconds:10,.0f} responses/s   x {base / seconds:6.1f}")


def micro() -> None:
    """One RL step of a tiny model: 256 responses of about 50 characters with integer answers."""
    responses = [f"{i}+{i + 7}*3={i * 4};{i * 4}*2={i * 8} so it is \\boxed{{{i * 8 % 1000}}}" for i in range(256)]
    golds = [str(i * 8 % 999) for i in range(256)]
    base, _ = timed(lambda: plain(responses, golds, gold_once=False))
    with Grader(1) as grader:
        seconds, _ = timed(lambda: grader.grade(responses, golds))
    size = sum(map(len, responses)) / 256
    print(f"\n256 responses of {size:.0f} characters: plain {base * 1e3:.1f} ms, grade {seconds * 1e3:.2f} ms a call")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path, nargs="?", help="lines with gold and responses")
    folder = Path(os.environ.get("QUAGMIRE_DATA_DIR", ""))
    path = parser.parse_args().responses or folder / "responses" / "math_cot.jsonl"
    if not path.exists():
        sys.exit(f"no responses at {path}: set QUAGMIRE_DATA_DIR, or give the file")
    responses, golds = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        again = [json.loads(line)["responses"] for _ in range(-(-SAMPLES // len(row["responses"])))]
        responses += [response for texts in again for response in texts][:SAMPLES]
        golds += [row["gold"]] * SAMPLES
    compare(f"{path.stem} repeated to {SAMPLES} a problem", responses, golds)
    compare("the same, no two equal", [f"{i}. {text}" for i, text in enumerate(responses)], golds)
    micro()


if __name__ == "__main__":
    main()
