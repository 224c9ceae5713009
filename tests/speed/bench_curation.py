"""Traces per second and memory of making an SFT set, beside `datasets.load_dataset` with filter, map and sort.

    OMP_NUM_THREADS=1 python tests/speed/bench_curation.py                      # 200,000 traces of about 600 bytes
    OMP_NUM_THREADS=1 python tests/speed/bench_curation.py --traces 2000000 --skip-datasets
    OMP_NUM_THREADS=1 python tests/speed/bench_curation.py --traces 20000 --sentences 120    # as long as R1's: 9 kB

Rows have the columns of AceReason-1.1-SFT, in eight parquet files: some traces a problem, some repeated, a tenth code.
Both sides do the same: maths only, duplicates out (equal up to case and spacing), 100 problems held out, then 1% of
the traces, random or shortest. Each run is a process of its own; memory is the peak of the
proportional set size of it and its children, sampled five times a second; CPU seconds tell what a busy machine hides.
Counting tokens costs more than all the rest, and the lengths are kept: the runs are shown without it, with it, and with
lengths that are there.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

COLUMNS = ("category", "source", "input", "output")
CUT = (  # of Qwen's tokenizers
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_traces(folder: Path, traces: int, sentences: int, files: int = 8) -> int:
    """Traces of random sentences; returns their bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlucmfw"), rng.integers(1, 9))) for _ in range(4000)]
    words += [str(i) for i in range(500)] + ["\\frac{1}{2}", "$x^2$", "so", "wait,", "hmm,"] * 20
    library = [" ".join(rng.choice(words, rng.integers(6, 24))) + ".\n" for _ in range(20_000)]
    size = 0
    for k in range(files):
        count = traces // files
        rows: dict[str, list[str]] = {name: [] for name in COLUMNS}
        with pq.ParquetWriter(folder / f"{k}.parquet", pa.schema([(name, pa.string()) for name in COLUMNS])) as writer:
            for i in range(count):
                problem = int(rng.integers(0, traces // 4))
                lengths = rng.geometric(1 / sentences)
                text = "<think>\n" + "".join(library[j] for j in rng.integers(0, len(library), lengths))
                question = f"Problem {problem}: {library[problem % len(library)]}"
                values = ("code" if rng.random() < 0.1 else "math", "s", question, text)
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
                if rng.random() < 0.02:
                    for column in rows.values():
                        column.append(column[0])
                size += len(text) + len(question)
                if len(rows["input"]) > 10_000 or i == count - 1:
                    writer.write_table(pa.table(rows))
                    rows = {name: [] for name in COLUMNS}
    return size


def save_tokenizer(folder: Path, traces: Path) -> None:
    """A byte-level BPE tokenizer that cuts as Qwen's does, trained on some of the traces."""
    import pyarrow.parquet as pq
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = next(pq.ParquetFile(traces / "0.parquet").iter_batches(2000, columns=["output"])).column(0).to_pylist()
    bpe = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(CUT), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, last])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>").save_pretrained(folder)


def ours(folder: Path, traces: Path, n: int, selection: str, **_: int) -> None:
    """A set by `curation.build`."""
    from quagmire_utils.data.curation import Recipe, build

    lengths = selection != "random"
    recipe = Recipe(
        source="acereason",
        tokenizer=str(folder / "tokenizer") if lengths else None,
        selection=selection,
        n=n,
        files=(str(traces),),
        benchmarks=(),
        validation_problems=100,
        seed=int(time.time()),  # a new set every time
    )
    build(recipe, folder / "sets" / str(time.time_ns()), cache=folder / "cache", progress=False)


def by_datasets(folder: Path, traces: Path, n: int, selection: str, workers: int) -> None:
    """The same with `datasets`, the whole in memory."""
    import random

    from datasets import load_dataset
    from transformers import AutoTokenizer

    rows = load_dataset("parquet", data_files=f"{traces}/*.parquet", split="train", keep_in_memory=True)
    rows = rows.filter(lambda category: category == "math", input_columns="category", num_proc=workers)

    def key(row):
        return {"key": "".join((row["input"] + "\n" + row["output"]).casefold().split())}

    def lengths(batch):
        return {"length": [len(ids) + 1 for ids in tokenizer(batch["output"], add_special_tokens=False)["input_ids"]]}

    rows = rows.map(key, num_proc=workers)
    seen = set()
    rows = rows.filter(lambda key: key not in seen and not seen.add(key), input_columns="key")
    held = set(random.Random(0).sample(sorted(set(rows["input"])), 100))
    train = rows.filter(lambda question: question not in held, input_columns="input", num_proc=workers)
    if selection == "random":
        train = train.shuffle(seed=0)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        train = train.map(lengths, batched=True, num_proc=workers).sort("length")
    train.select(range(n)).to_parquet(folder / "alternative.parquet")


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak GiB) of this script run as one side."""
    import psutil

    started, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # one that ends meanwhile
            peak = max(peak, sum(one.memory_full_info().pss for one in [parent, *parent.children(recursive=True)]))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode())
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return time.perf_counter() - started, cpu, peak / 2**30


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=200_000)
    parser.add_argument("--sentences", type=int, default=8, help="a response has on average (75 bytes each)")
    parser.add_argument("--workers", type=int, default=2, help="of datasets")
    parser.add_argument("--skip-datasets", action="store_true", help="which needs memory for all texts")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = json.loads(options.side)
        run = {"ours": ours, "datasets": by_datasets}[side.pop("who")]
        run(**{**side, "folder": Path(side["folder"]), "traces": Path(side["traces"])})
        return
    with tempfile.TemporaryDirectory() as name:
        folder, traces = Path(name), Path(name) / "traces"
        traces.mkdir()
        size = write_traces(traces, options.traces, options.sentences)
        save_tokenizer(folder / "tokenizer", traces)
        print(f"{options.traces:,} traces, {size / 2**20:,.0f} MiB of text, {options.workers} workers")
        print(f"{'':<44}{'seconds':>9}{'CPU s':>8}{'traces/s':>11}{'MiB/s':>8}{'peak GiB':>10}{'ratio':>8}")
        rows = [("random: one reading, hashes alone", "ours", "random"), ("random, again", "ours", "random")]
        rows += [(f"shortest{how}", "ours", "shortest") for how in (": every token counted", ", again (lengths kept)")]
        if not options.skip_datasets:
            rows += [(f"datasets, in memory: {how}", "datasets", how) for how in ("random", "shortest")]
        taken: dict[tuple[str, str], float] = {}
        for label, who, selection in rows:
            if label.startswith("shortest:"):
                for path in (folder / "cache").glob("*.parquet"):
                    path.unlink()
            side = {"who": who, "folder": name, "traces": str(traces), "n": options.traces // 100}
            side |= {"selection": selection, "workers": options.workers}
            seconds, cpu, peak = measure(["--side", json.dumps(side)])
            first = taken.setdefault((who, selection), seconds)
            ratio = f"{first / taken['ours', selection]:.1f}x" if who == "datasets" else ""
            speed = f"{options.traces / seconds:>11,.0f}{size / 2**20 / seconds:>8.0f}"
            print(f"{label:<44}{seconds:>9.1f}{cpu:>8.1f}{speed}{peak:>10.2f}{ratio:>8}", flush=True)


if __name__ == "__main__":
    main()
