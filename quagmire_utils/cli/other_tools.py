"""Commands that read what other tools write, and write what they read: import, export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from quagmire_utils.cli.app import OWN, app
from quagmire_utils.cli.stores import DataDir, Golds, load_golds, print_scores


@app.command("import", rich_help_panel=OWN)
def import_command(
    source: Annotated[Path, typer.Argument(help="A log, or a folder of logs of one model.")],
    output: Annotated[Path, typer.Option(help="Folder of the graded answers and their page.")],
    log_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="lm-eval, inspect, lighteval, evalscope, openai, nemo-skills, verl, trl, jsonl. Default: by fields",
        ),
    ] = "",
    benchmark: Golds = None,
    grader: Annotated[str, typer.Option(help="Of the golds in the log. Default: choice for letters, else math.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Read the sample logs of another tool, grade them again, and make the page of an evaluation."""
    from quagmire_utils.exchange.importing import import_logs, write_page

    golds = load_golds(benchmark, data_dir) if benchmark else None
    store, left_out = import_logs(source, output, log_format=log_format, golds=golds, grader=grader)
    origin = store.origin
    print(f"From {origin['engine']}: {', '.join(f'{name} {origin[name]}' for name in origin if name != 'engine')}.")
    for reason, count in left_out.items():
        print(f"Left out: {count} answers with {reason}.")
    table, page = write_page(store, left_out)
    print_scores(table)
    print(f"\nAll on one page: {os.path.relpath(page)}")


@app.command("export", rich_help_panel=OWN)
def export_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of evaluations, one a model.")],
    output: Annotated[Path, typer.Option(help="Folder of the tables and their data card.")],
    inspect: Annotated[bool, typer.Option("--inspect", help="Also write logs that `inspect view` opens.")] = False,
    to_hub: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="Dataset repository of the hub.")] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: make a new repository public.")] = False,
) -> None:
    """Write counts and answers as parquet with a data card, and a table that `quagmire rank` reads."""
    from quagmire_utils.exchange.exporting import export, push

    print(f"Written to {export(folders, output, inspect_logs=inspect)}; README.md there says what it holds.")
    if to_hub:
        print(f"Uploaded to {push(output, to_hub, public=public)}")
