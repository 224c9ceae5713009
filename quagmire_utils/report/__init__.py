"""The page of the whole study, and the table in the docs: every figure and table of the paper, ours beside the paper's.

    page.write_report("results/mini")               # results/mini/report.html, from results/mini/notebooks/*.ipynb
    card.update_readme("docs/reproduction.md", "results/mini") # the 20 rows between the marks

    quagmire report page mini                       # from the shell, as `./reproduce.sh --only report` does
    quagmire report readme mini
    quagmire report screenshot mini                 # results/mini/report.png, taken by headless Chromium

The page is one file without scripts or requests. It shows what the executed notebooks show (`study`), in the order of
the paper, and everything passes a sanitizer (`clean`), because records hold text that models wrote.
"""

from quagmire_utils.report.study import Headline, Ledger

__all__ = ["Headline", "Ledger"]
