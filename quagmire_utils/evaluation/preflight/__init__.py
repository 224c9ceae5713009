"""Before an evaluation: what it is about to do, and one sentence for whatever cannot work.

    plan = check("path/to/checkpoint", problems, 64, SamplingParams(max_tokens=2048), "samples/mine", k=64)
    print(plan.text)                        # problems, answers, tokens, disk; nothing heavy has been loaded yet
    with closing(load_engine(EngineConfig(model=plan.model))) as engine:
        plan = timed(plan, engine, problems, params)
        print(plan.text)                    # and now the time and the GPU-hours, from a few seconds of measurement

`check` reads configuration and tokenizer, no weights. It raises ParameterError for k above the number of samples, an
engine or a model that is not there, a chat template that the tokenizer has not, a prompt that leaves no room for
max_tokens in the context, weights larger than the memory, a store whose samples were drawn otherwise (by another model,
say, or to other questions), a problem without a gold answer, and a disk too full for the answers; golds that the grader
can't read are named in the plan. The paper's evaluations (App. B.3) draw 256 answers of up to 8,192 tokens to 3,812
problems for hundreds of checkpoints: a mistake found after an hour has cost one.
"""

from quagmire_utils.evaluation.preflight.checks import (
    check,
    check_numbers,
    check_prompts,
    free_bytes,
    unreadable_golds,
    what_is_left,
)
from quagmire_utils.evaluation.preflight.plan import Plan, Probe, duration
from quagmire_utils.evaluation.preflight.probing import probe, timed

__all__ = [
    "Plan",
    "Probe",
    "check",
    "check_numbers",
    "check_prompts",
    "duration",
    "free_bytes",
    "probe",
    "timed",
    "unreadable_golds",
    "what_is_left",
]
