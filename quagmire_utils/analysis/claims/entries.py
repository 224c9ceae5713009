"""The ledger's entries: what the paper claims, where, of which models, in its words, and what tests it.

`below` and `bound` say where the statistic must lie for the claim to hold; bounds other than zero are ours, and named.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from quagmire_utils.analysis.claims import comparisons, over_candidates
from quagmire_utils.analysis.claims.evidence import Entry, Evidence
from quagmire_utils.analysis.claims.table_entries import RANK, TABLES
from quagmire_utils.analysis.records import select_candidates
from quagmire_utils.core import published as paper

MODELS = LLAMA, MISTRAL, QWEN = paper.MODELS
PARTLY = 0.8  # "only partly": R2 is below this
NOTHING = 0.02  # "stalls", "the same", "gains nothing": less than 2 points of Pass@1
MORE_OFTEN_THAN_NOT = 0.5


def _dataset(evidence: Evidence) -> pd.DataFrame:
    return select_candidates(evidence.frame, evidence.family, "dataset")


def _fig03_r2() -> float:
    return float(paper.claims().set_index("name").loc["fig03_r2", "value"])


FIG_7 = "training on shortest examples (e.g., s10k, s500k) led to faster performance improvements"
BUDGET = "With the same SFT budget, training only on short examples may lead to better SFT performance"
HALF = (
    "SFT training on unique examples for a one epoch underperforms training on half examples for two epochs, either "
    "after SFT or SFT-then-RL"
)
FIG_4_LEFT = (
    "SFT continues to improve with up to 4 epochs where the final performance after RL saturates after 2 epochs"
)
FIG_4 = {"Fig. 4": (MISTRAL, QWEN), "Sec. 2.1": (LLAMA,)}
SHORTEST = {"Fig. 1": (MISTRAL,), "Fig. 7": (LLAMA,)}

SCORES = (
    Entry(
        "score_explains_part",
        {"Fig. 3": (LLAMA,)},
        "the score after SFT explains only part of the outcome of RL",
        "indicating post-SFT performance explains only 43% of variation in the final outcome after RL",
        lambda e: over_candidates.fitted_r2(_dataset(e), e.outcome),
        below=True,
        bound=PARTLY,
        unit="R²",
        published={LLAMA: _fig03_r2()},
        scenario="dataset",
    ),
    *(
        Entry(
            f"best_score_is_not_best_{figure}",
            {f"Fig. {figure}": (model,)},
            "the data with the best score after SFT do not end best after RL",
            "Model with the best SFT performance is not the one with the best final performance after RL.",
            partial(comparisons.best_score_against_best, scenario="instance", selections=selections),
            below=True,
        )
        for figure, model, selections in (
            ("1", MISTRAL, ("random", "longest", "shortest")),
            ("7", LLAMA, ("random", "shortest")),
        )
    ),
    Entry(
        "best_score_is_not_best_dataset",
        {"Sec. 2.1": (LLAMA, MISTRAL)},
        "the training with the best score after SFT does not end best after RL",
        "the model with the best final performance after RL is not the one with the best post-SFT performance",
        partial(comparisons.best_score_against_best, scenario="dataset"),
        below=True,
    ),
    Entry(
        "some_sft_ends_below_base",
        {"Abstract": (LLAMA,), "Fig. 8": (MISTRAL,), "Figs. 4, 10": (QWEN,)},
        "some SFT that lifts the score ends below RL from the base",
        "RL training on models with improved SFT performance could lead to substantially worse outcome compared to RL "
        "on the base model without SFT",
        comparisons.worst_against_base,
        below=True,
    ),
)

REPEATING = (
    Entry(
        "repeating_raises_score",
        FIG_4,
        "repeating the same examples more often raises the score after SFT",
        FIG_4_LEFT,
        partial(comparisons.repetition, what="pass1"),
    ),
    Entry(
        "repeating_stalls_outcome",
        FIG_4,
        "the outcome stalls or falls when the same examples are repeated more often",
        FIG_4_LEFT,
        partial(comparisons.repetition, what="outcome"),
        below=True,
        bound=NOTHING,
    ),
    Entry(
        "repeating_leaves_less_to_gain",
        {"Introduction": MODELS},
        "repeating the same examples more often leaves RL less to add",
        "may significantly boost post-SFT performance but diminishes the potential for improvement during RL",
        partial(comparisons.repetition, what="gain"),
        below=True,
    ),
    Entry(
        "repeated_sft_degrades_outcome",
        {"Fig. 4": (QWEN,)},
        "SFT of several epochs ends below RL from the strong base",
        "final performance after RL degrades with SFT training",
        comparisons.repeated_below_base,
        below=True,
    ),
    Entry(
        "half_twice_scores_higher",
        {"Abstract": MODELS},
        "fewer examples repeated score higher after SFT than more of them once, at equal tokens",
        HALF,
        partial(comparisons.fewer_repeated, what="pass1"),
    ),
    Entry(
        "half_twice_ends_higher",
        {"Abstract": MODELS},
        "fewer examples repeated end higher after RL than more of them once, at equal tokens",
        HALF,
        partial(comparisons.fewer_repeated, what="outcome"),
    ),
    Entry(
        "repeated_scores_higher_across_sources",
        {"Fig. 6": (LLAMA,)},
        "repeated examples score higher after SFT than unique ones, across sources",
        "leads to higher accuracy on reasoning benchmarks such as MATH-500 (+8.75% vs. non-repeated data, left figure)",
        partial(comparisons.repeated_across_sources, what="pass1"),
    ),
    Entry(
        "repeated_ends_lower_across_sources",
        {"Fig. 6": (LLAMA,)},
        "repeated examples end lower after RL than unique ones, across sources",
        "models trained this way show smaller improvements during RL (-1.43% vs. non-repeated)",
        partial(comparisons.repeated_across_sources, what="outcome"),
        below=True,
    ),
    Entry(
        "larger_rate_scores_higher",
        {"Fig. 6": (LLAMA,)},
        "a larger learning rate scores higher after SFT",
        "repeated for more training epochs (ep) or/and with a larger learning rate (LR) leads to higher accuracy",
        partial(comparisons.larger_learning_rate, what="pass1"),
    ),
    Entry(
        "larger_rate_leaves_less_to_gain",
        {"Fig. 6": (LLAMA,)},
        "a larger learning rate leaves RL less to add",
        "models trained this way show smaller improvements during RL",
        partial(comparisons.larger_learning_rate, what="gain"),
        below=True,
    ),
)

LOSS = (
    Entry(
        "repeating_raises_loss",
        {"Fig. 5": (LLAMA,)},
        "repeating the examples for more epochs makes the generalization loss rise",
        "we observe the generalization loss on validation examples to elevate and eventually flare up",
        lambda e: over_candidates.loss_rise(_dataset(e)),
        unit="nats",
    ),
    Entry(
        "loss_tracks_gain",
        {"Fig. 5": (LLAMA,)},
        "a higher generalization loss after SFT goes with a smaller gain during RL",
        "This generalization loss shows strong correlation with the further performance gain during the subsequent RL",
        lambda e: over_candidates.loss_and_gain(_dataset(e).assign(gain=lambda c: c[e.outcome] - c["pass1"])),
        below=True,
        unit="correlation",
    ),
    Entry(
        "loss_tells_beyond_score",
        {"Fig. 5": (LLAMA,), "Sec. 3.1": (MISTRAL,)},
        "at equal score after SFT, a higher generalization loss foretells a lower outcome",
        "identify generalization loss after SFT to be a viable indicator of the model's potential during the "
        "subsequent RL",
        lambda e: over_candidates.loss_beyond_score(_dataset(e), e.outcome),
        below=True,
        unit="correlation",
    ),
    Entry(
        "dominated_candidates_end_lower",
        {"Sec. 3.1": (LLAMA, MISTRAL)},
        "a candidate with both a lower score and a higher loss than another ends lower",
        "rule out post-SFT models with both lower performance and higher generalization loss as they will likely "
        "remain underperforming after the subsequent RL",
        lambda e: over_candidates.dominated_share(_dataset(e), e.outcome),
        bound=MORE_OFTEN_THAN_NOT,
        unit="share",
    ),
    Entry(
        "own_loss_ranks_worse_than_pass_at_k",
        {"Sec. 4.3": (LLAMA, MISTRAL)},
        "across data sets the loss on their own held-out traces ranks worse than Pass@large k",
        "Generalization loss is not applicable for instance-level selection due to distributional gaps between "
        "different datasets.",
        partial(over_candidates.loss_across_data, against="pass_k"),
        below=True,
        unit=RANK,
    ),
    Entry(
        "own_loss_ranks_worse_than_common_loss",
        {"Sec. 4.3": (LLAMA, MISTRAL)},
        "across data sets the loss on their own held-out traces ranks worse than that on common ones",
        "Without a common, representative validation set, it is difficult to make a fair comparison.",
        partial(over_candidates.loss_across_data, against="gen_loss"),
        below=True,
        unit=RANK,
    ),
)

LENGTHS = (
    Entry(
        "shortest_score_higher",
        SHORTEST,
        "the shortest examples score higher after SFT than random ones, at equal tokens",
        BUDGET,
        partial(comparisons.shortest_against_random, what="pass1"),
    ),
    Entry(
        "shortest_end_lower",
        SHORTEST,
        "the shortest examples end lower after RL than random ones, at equal tokens",
        "it often leads to worse outcome after RL compared to training on examples with varying lengths",
        partial(comparisons.shortest_against_random, what="outcome"),
        below=True,
    ),
    Entry(
        "few_shortest_lower_score",
        {"Fig. 8": (MISTRAL,)},
        "few of the shortest examples push the score below the base's",
        "post-SFT performance first dips and then gradually recovers and improves",
        partial(comparisons.fewest_from_base, what="pass1"),
        below=True,
    ),
    Entry(
        "few_shortest_lower_outcome",
        {"Fig. 8": (MISTRAL,)},
        "RL after few of the shortest examples ends below RL from the base",
        "the final performance after RL also first dips and then gradually goes up and improves to a better level",
        partial(comparisons.fewest_from_base, what="outcome"),
        below=True,
    ),
    Entry(
        "many_shortest_raise_outcome",
        {"Fig. 8": (MISTRAL,)},
        "RL after many of the shortest examples ends above RL from the base",
        "the final performance after RL also first dips and then gradually goes up and improves to a better level",
        partial(comparisons.most_from_base, what="outcome"),
    ),
    Entry(
        "outcome_recovers_slower",
        {"Fig. 8": (MISTRAL,)},
        "relative to the base, the shortest examples lift the outcome less than the score",
        "post-RL performance recovers to the same level as the base model slower than the post-SFT performance",
        comparisons.outcome_lags_score,
        below=True,
    ),
)

STRONG_BASE = (
    Entry(
        "more_examples_raise_score",
        {"Fig. 2": (MISTRAL,)},
        "more SFT examples raise the score after SFT",
        "Mistral's (left) post-SFT performance and final performance after RL both increase",
        partial(comparisons.more_examples, what="pass1"),
    ),
    Entry(
        "more_examples_raise_outcome",
        {"Fig. 2": (MISTRAL,)},
        "more SFT examples raise the outcome",
        "Mistral's (left) post-SFT performance and final performance after RL both increase",
        partial(comparisons.more_examples, what="outcome"),
    ),
    *(
        Entry(
            f"strong_base_{end}_{figure}",
            {f"Fig. {figure}": (QWEN,)},
            f"{kind} examples {words}",
            quote,
            partial(comparisons.selection_from_base, selections=(kind,), what=what),
            below=what == "outcome",
            bound=NOTHING if what == "outcome" else 0.0,
        )
        for figure, kind in (("2", "random"), ("9", "shortest"))
        for end, what, words, quote in (
            (
                "scores_higher",
                "pass1",
                "lift a strong base's score",
                "despite the substantially improved SFT performance",
            ),
            (
                "gains_nothing",
                "outcome",
                "lift a strong base's outcome by nothing",
                "where the latter remains the same",
            ),
        )
    ),
    Entry(
        "every_sft_scores_higher",
        {"Fig. 10": (QWEN,)},
        "every SFT lifts a strong base's score",
        "All SFT training substantially improves Qwen3's",
        comparisons.every_score_above_base,
    ),
    Entry(
        "long_examples_raise_outcome",
        {"Fig. 10": (QWEN,)},
        "longest and longest + shortest examples lift a strong base's outcome",
        "Training on Longest and 10k Longest+10k Shortest SFT examples lead to visibly improved final performance",
        partial(comparisons.selection_from_base, selections=("longest", "shortest+longest"), what="outcome"),
    ),
    Entry(
        "mixture_ends_best",
        {"Fig. 10": (QWEN,)},
        "longest + shortest examples end best of all selections",
        "the latter achieves the best final performance for Qwen3 models in this work",
        comparisons.mixture_against_others,
    ),
    Entry(
        "other_sft_degrades_outcome",
        {"Fig. 10": (QWEN,)},
        "other SFT (shortest examples) ends below RL from a strong base",
        "Other SFT training lead to significantly degraded final performance after RL.",
        partial(comparisons.selection_from_base, selections=("shortest",), what="outcome"),
        below=True,
    ),
)

ENTRIES = (*SCORES, *REPEATING, *LOSS, *LENGTHS, *STRONG_BASE, *TABLES)
