"""The page of the whole study, and the table in the docs: every figure and table of the paper, ours beside the paper's.

    quagmire report page mini          # results/mini/report.html, as `./reproduce.sh --only report` does
    quagmire report readme mini        # the 20 rows between the marks of docs/reproduction.md

The page is one file without scripts or requests. It shows what the executed notebooks show (`study`), in the order of
the paper, and everything passes a sanitizer (`clean`), because records hold text that models wrote.
"""

from quagmire_utils.report.study import Headline, Ledger

__all__ = ["Headline", "Ledger"]
