"""The page of the whole study, and the README's table: every figure and table of the paper, ours beside the paper's.

    write_report("results/mini")                    # results/mini/report.html, from results/mini/notebooks/*.ipynb
    update_readme("README.md", "results/mini")      # the 20 rows between the marks

    quagmire report page mini       # from the shell, as `./reproduce.sh --only report` does
    quagmire report readme mini
    quagmire report screenshot mini # results/mini/report.png, taken by headless Chromium

The page is one file without scripts or requests. What notebooks show is all that it shows (`executed`), in the order of
the paper (`story`), and everything passes a sanitizer (`clean`), because records hold text that models wrote.
"""

from quagmire_utils.report.executed import HEADLINE, Executed, Headline, read_study
from quagmire_utils.report.page import LARGEST, NAME, build, write_report
from quagmire_utils.report.readme import update_readme
from quagmire_utils.report.story import AUDIT, LEDGER, PLACES, STORY, Section, label_of, place_of

__all__ = [
    "AUDIT",
    "HEADLINE",
    "LARGEST",
    "LEDGER",
    "NAME",
    "PLACES",
    "STORY",
    "Executed",
    "Headline",
    "Section",
    "build",
    "label_of",
    "place_of",
    "read_study",
    "update_readme",
    "write_report",
]
