"""Figures: drawing on a given axis, and saving. Their numbers come from `analysis`. Paper: Figs. 1-10.

    candidates = choose_candidates(frame, "micro-mistral", "instance", selections=["shortest"])
    panel = Panel("micro-mistral", candidates, base_models(frame, "micro-mistral"))
    fig = stage_grid([panel], x="n_examples", by="selection")
    save_figure(fig, "runs/mini/figures/fig08_mistral_shortest")     # .svg and .png

Series differ by marker, line style and lightness as well as by colour, so that they survive greyscale printing and
colour blindness. Error bars are 95 % intervals from the sampling of answers alone. An axis without data says so.
"""

from quagmire_utils.report.plots.curves import pass_at_k_grid, rl_curve_grid, verdicts_and_lengths
from quagmire_utils.report.plots.look import new_figure, save_figure, stamp, write_message
from quagmire_utils.report.plots.series import Panel, caption, choose_candidates, half_widths
from quagmire_utils.report.plots.stages import (
    plot_loss_by_epochs,
    plot_loss_vs_gain,
    plot_scores_by_epochs,
    plot_sft_vs_rl,
    recipe_grid,
    selection_figure,
    stage_grid,
)
