"""The page, its picture, and the README's table from the shell: `python -m quagmire_utils.report page mini`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.browser import Browser
from quagmire_utils.report.page import NAME, ROOT, write_report
from quagmire_utils.report.readme import update_readme

WINDOW = (1280, 1500)  # of the README's picture


def take_screenshot(page: Path, target: Path, *, scheme: str = "light", whole_page: bool = False) -> Path:
    """A picture of the page at desktop width, with a palette of 256 colours: a third of the size."""
    from PIL import Image

    with Browser() as browser:
        browser.open(page, width=WINDOW[0], height=WINDOW[1], scheme=scheme)
        browser.screenshot(target, whole_page=whole_page)
    with Image.open(target) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 with --check where the README is not up to date, 2 a parameter is wrong."""
    parser = argparse.ArgumentParser(prog="python -m quagmire_utils.report", description=__doc__)
    parser.add_argument("command", choices=("page", "readme", "screenshot"))
    parser.add_argument("profile", help="name of a folder of results/, or its path")
    parser.add_argument(
        "--check", action="store_true", help="readme: change nothing, only say whether it is up to date"
    )
    values = parser.parse_args(arguments)
    folder = Path(values.profile)
    folder = folder if (folder / "notebooks").is_dir() else ROOT / "results" / values.profile
    try:
        if not folder.is_dir():
            raise ParameterError(f"there is no folder {folder}")
        if values.command == "page":
            print(write_report(folder))
        elif values.command == "readme":
            stale = update_readme(ROOT / "README.md", folder, write=not values.check)
            print("README.md " + (("is stale" if values.check else "was rewritten") if stale else "is up to date"))
            return int(values.check and stale)
        else:
            if not (folder / NAME).is_file():
                raise ParameterError(f"there is no {folder / NAME} yet; `page` makes it")
            print(take_screenshot(folder / NAME, folder / "report.png"))
    except ParameterError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
