"""Write evaluations for other people and tools: parquet with a data card, a table for `rank`, logs for `inspect view`.

export(["runs/base", "runs/sft"], "runs/shared", inspect_logs=True)
push("runs/shared", "owner/name")                                      # a dataset repository of the hub
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from quagmire_utils.analysis.measurements import fill_losses
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, write_csv, write_parquet, write_text
from quagmire_utils.core.provenance import git_state, package_versions
from quagmire_utils.evaluation.generalization_loss import read_losses
from quagmire_utils.evaluation.pass_at_k import benchmark_average, bootstrap_intervals
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.clean import render
from quagmire_utils.report.inputs import licences


def export(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], inspect_logs: bool = False
) -> Path:
    """Write evaluations, each of one model, into the folder `output`; return it.

    It holds counts.parquet, samples/NAME/*.parquet, candidates.csv for `quagmire rank` (Pass@1, Pass@k at the largest k
    that all have, and the loss if all measured it on the same traces), and README.md, the data card. inspect_logs: also
    inspect/NAME-BENCHMARK.eval. Raise ParameterError for folders without graded answers, or of one name, and for an
    output that holds answers of others or would replace one of the folders.
    """
    output, stores = Path(output), {Path(folder).resolve().name: SampleStore(folder) for folder in folders}
    if len(stores) < len(folders):
        raise ParameterError("folders", [*map(str, folders)], reason="two have one name; the name is the candidate's")
    parts = {name: store.counts().query("n > 0") for name, store in stores.items()}
    empty = [stores[name].path for name, part in parts.items() if part.empty]
    if empty:
        raise ParameterError("folders", empty[0], reason=f"{empty[0]} holds no graded answers")
    losses = {name: read_losses(store.path) for name, store in stores.items()}
    held = {path.name for path in output.glob("samples/*")}
    if held - {*stores}:
        reason = f"{output} holds answers of {', '.join(sorted(held - {*stores}))}; use another folder"
        raise ParameterError("output", output, reason=reason)
    places = [(output / "samples" / name).resolve() for name in stores]
    for own in (store.path.resolve() for store in stores.values()):
        if any(own.is_relative_to(place) or place.is_relative_to(own) for place in places):
            raise ParameterError("output", output, reason=f"the export would overwrite {own}; use another folder")
    for name in held:  # the answers of an earlier export
        shutil.rmtree(output / "samples" / name)
    counts = pd.concat(parts, names=["candidate"]).reset_index("candidate").reset_index(drop=True)
    write_parquet(counts, output / "counts.parquet")
    for name, store in stores.items():
        for part in store.parts():
            frame = store.read_part(part)
            if frame is not None:
                texts = {column: frame[column].map(_sound) for column in ("text", "extracted")}
                frame = frame.assign(candidate=name, **texts)[["candidate", *frame.columns]]
                write_parquet(frame, output / "samples" / name / part.name)
    k = max(2, int(counts["n"].min()))
    columns = ["candidate", "pass1", "pass1_se", f"pass@{k}", f"pass@{k}_se"]
    scores = {name: bootstrap_intervals(part, [1, k]).tail(2) for name, part in parts.items()}  # the macro average
    shown = [(name, *score[["pass_at_k", "standard_error"]].to_numpy().ravel()) for name, score in scores.items()]
    table = pd.DataFrame(shown, columns=columns).assign(gen_loss=math.nan, gen_loss_se=math.nan)
    fill_losses(table, losses)
    write_csv(table.dropna(axis="columns", how="all"), output / "candidates.csv")
    totals = counts.groupby(["candidate", "benchmark"]).agg(problems=("problem", "size"), answers=("n", "sum"))
    facts = {"totals": totals.reset_index().to_dict("records"), "licences": licences(counts["benchmark"].unique())}
    facts["origins"] = {name: {"model": _model(store), **store.origin} for name, store in stores.items()}
    write_text(render("export.md.j2", versions=package_versions(), **git_state(), **facts), output / "README.md")
    for name, store in stores.items() if inspect_logs else ():
        write_inspect(store, output / "inspect", name)
    return output


def _model(store: SampleStore) -> str:
    notes = read_json(store.path / "store.json").get("notes", {}) if store.origin else {}
    return str(notes.get("model", store.path.name))


def _sound(text: Any) -> str | None:
    """Return a text in which every reader can decode every character."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else None


def write_inspect(store: SampleStore, folder: Path, name: str) -> None:
    """Write `folder`/NAME-BENCHMARK.eval for each benchmark, by inspect_ai's own writer.

    A correct answer scores C, a wrong one and one without an answer I, an undecided one N.
    """
    try:
        from inspect_ai import log as logs
        from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage
        from inspect_ai.scorer import Score
    except ModuleNotFoundError as error:
        raise ParameterError("--inspect", reason="inspect_ai writes its logs: pip install inspect-ai") from error
    model, origin, golds = _model(store), store.origin, store.golds()
    prompts = store.prompts().set_index(["benchmark", "problem"])["prompt"].to_dict()
    names = ("temperature", "top_p", "max_tokens", "seed")
    drawn = GenerateConfig(**{name: origin[name] for name in names if isinstance(origin.get(name), int | float)})
    for benchmark, counts in store.counts().query("n > 0").groupby("benchmark"):
        samples = []
        for row in store.read(benchmark=benchmark).dropna(subset=["verdict"]).itertuples():
            key = row.benchmark, row.problem
            reason = "max_tokens" if row.finish_reason == "length" else row.finish_reason
            output = ModelOutput.from_content(model, _sound(row.text), reason)
            if row.tokens >= 0:
                output.usage = ModelUsage(output_tokens=row.tokens, total_tokens=row.tokens)
            value = {"correct": "C", "wrong": "I", "no_answer": "I"}.get(row.verdict, "N")
            score = Score(value=value, answer=_sound(row.extracted), explanation=f"{row.verdict}, by {row.grader}")
            facts = {"input": prompts.get(key, row.problem), "target": golds[key][0], "output": output}
            facts["messages"] = [{"role": "user", "content": facts["input"]}, output.message]
            facts["model_usage"] = {model: output.usage} if output.usage else {}
            samples.append(logs.EvalSample(id=row.problem, epoch=row.index + 1, scores={"quagmire": score}, **facts))
        mean = benchmark_average(counts, [1]).iloc[0]
        metrics = {"accuracy": float(mean["pass_at_k"]), "stderr": float(mean["standard_error"])}
        metrics = {name: logs.EvalMetric(name=name, value=value) for name, value in metrics.items()}
        scores = [logs.EvalScore(name="quagmire", scorer="quagmire", metrics=metrics)]
        now, ids = datetime.now(UTC).isoformat(timespec="seconds"), counts["problem"].tolist()
        dataset = logs.EvalDataset(name=benchmark, samples=len(ids), sample_ids=ids)
        how = {"config": logs.EvalConfig(epochs=int(counts["n"].max())), "metadata": {"origin": origin}}
        log = logs.EvalLog(
            status="success",
            eval=logs.EvalSpec(created=now, task=benchmark, model=model, dataset=dataset, **how),
            plan=logs.EvalPlan(config=drawn),
            results=logs.EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores),
            stats=logs.EvalStats(started_at=now, completed_at=now),
            samples=samples,
        )
        folder.mkdir(parents=True, exist_ok=True)
        logs.write_eval_log(log, str(folder / f"{name}-{benchmark}.eval"))


def push(folder: str | os.PathLike[str], repository: str, *, public: bool = False) -> str:
    """Upload a folder of `export` to a dataset repository of the hub, made if it is not there; return its address.

    A new repository is private unless `public`. The token is that of `hf auth login`, or HF_TOKEN.
    """
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ParameterError("--push", repository, reason="it needs pip install huggingface_hub") from error
    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
        message = "Counts and samples of evaluations"
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        reason = f"{repository} could not be written: {(str(error) or repr(error)).splitlines()[0]}"
        raise ParameterError("--push", repository, reason=reason) from error
    return str(address)
