"""Figures: drawing on a given axis, and saving; numbers come from `records`, `tables`, `prediction`. Paper: Figs. 1-10.

    frame = candidate_frame(records)
    panels = [panel(frame, "Mistral-NeMo-12B-Instruct", "instance", selections=["shortest"])]
    fig = stage_grid(panels, x="n_examples", by="selection", profile="mini", names=True)
    stamp(fig, "profile mini · measured")
    save_figure(fig, "results/mini/figures/fig08_mistral_shortest")     # .svg and .png

Series differ by marker, line style and lightness as well as by colour, so that they survive greyscale printing and
colour blindness. Error bars are 95 % intervals from the sampling of answers alone: candidates are measured on the same
problems, so the choice of problems moves them together; what RL runs differ by is drawn as a dash for each run. What
was not run is an axis that says so.
"""

from quagmire_utils.report.plots.bars import (
    on_benchmark,
    plot_recipes,
    recipe_grid,
    recipe_labels,
    repetition_effects,
    show_repetition_effects,
    source_panels,
)
from quagmire_utils.report.plots.captions import caption, caption_loss, caption_sft_vs_rl
from quagmire_utils.report.plots.curves import (
    loss_by_position_and_length,
    pass_at_k_grid,
    plot_lengths,
    plot_pass_at_k,
    plot_pass_at_k_band,
    plot_rl_curve,
    plot_rl_curves,
    plot_verdicts,
    rl_curve_grid,
    verdicts_and_lengths,
)
from quagmire_utils.report.plots.look import (
    FORMATS,
    INTERVAL,
    LABEL_SIZE,
    LINES,
    MARKERS,
    NOT_RUN,
    SELECTION_STYLE,
    STYLE,
    VERDICT_STYLE,
    compact_pictures,
    new_figure,
    not_run,
    save_figure,
    stamp,
)
from quagmire_utils.report.plots.outcomes import outcome_grid, overtraining_grid, plot_outcomes, plot_overtraining
from quagmire_utils.report.plots.scatter import (
    correlations,
    plot_loss_by_epochs,
    plot_loss_vs_gain,
    plot_scores_by_epochs,
    plot_sft_vs_rl,
)
from quagmire_utils.report.plots.series import OUTCOMES, Panel, Series, half_widths, panel, panels, series
from quagmire_utils.report.plots.stages import plot_before_after, plot_stages, selection_figure, stage_grid

__all__ = [
    "FORMATS",
    "INTERVAL",
    "LABEL_SIZE",
    "LINES",
    "MARKERS",
    "NOT_RUN",
    "OUTCOMES",
    "SELECTION_STYLE",
    "STYLE",
    "VERDICT_STYLE",
    "Panel",
    "Series",
    "caption",
    "caption_loss",
    "caption_sft_vs_rl",
    "compact_pictures",
    "correlations",
    "half_widths",
    "loss_by_position_and_length",
    "new_figure",
    "not_run",
    "on_benchmark",
    "outcome_grid",
    "overtraining_grid",
    "panel",
    "panels",
    "pass_at_k_grid",
    "plot_before_after",
    "plot_lengths",
    "plot_loss_by_epochs",
    "plot_loss_vs_gain",
    "plot_outcomes",
    "plot_overtraining",
    "plot_pass_at_k",
    "plot_pass_at_k_band",
    "plot_recipes",
    "plot_rl_curve",
    "plot_rl_curves",
    "plot_scores_by_epochs",
    "plot_sft_vs_rl",
    "plot_stages",
    "plot_verdicts",
    "recipe_grid",
    "recipe_labels",
    "repetition_effects",
    "rl_curve_grid",
    "save_figure",
    "selection_figure",
    "series",
    "show_repetition_effects",
    "source_panels",
    "stage_grid",
    "stamp",
    "verdicts_and_lengths",
]
