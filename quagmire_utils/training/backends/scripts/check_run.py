"""Check a run with verl's own code, without a GPU: configuration, prompts, reward.

Runs in verl's environment: `python check_run.py job.yaml prompts.json train.parquet`, where job.yaml is what
`./run.sh --cfg job` prints.
"""

import hashlib
import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main(job: str, expected: str, data: str) -> None:
    """Check the run, see the module."""
    import pyarrow.parquet as pq
    from omegaconf import OmegaConf
    from transformers import AutoConfig
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils import hf_tokenizer
    from verl.utils.config import validate_config
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    config = OmegaConf.load(job)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))

    model = config.actor_rollout_ref.model
    tokenizer = hf_tokenizer(model.path)
    tokenizer.chat_template = model.custom_chat_template
    kind = AutoConfig.from_pretrained(model.path).model_type
    builder = create_continuous_token_builder(tokenizer, hf_model_type=kind)
    with open(expected, encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    prompts = pq.read_table(data).to_pylist()
    if len(prompts) != len(rows):
        sys.exit(f"{data} has {len(prompts)} problems instead of {len(rows)}")
    for row, (problem, digest) in zip(prompts, rows, strict=True):
        ids = list(builder.build_initial_tokens(row["prompt"]))
        if hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12] != digest:
            sys.exit(f"verl makes other tokens of problem {problem} than sampling does: {ids}")
        if len(ids) > config.data.max_prompt_length:
            sys.exit(f"problem {problem} has {len(ids)} tokens, over data.max_prompt_length")

    first = prompts[0]
    reward = get_custom_reward_fn(config)
    answers = [("I do not know.", 0.0)]
    if first["extra_info"]["grader"] in ("math", "math_verify", "choice", "text"):  # other golds are no answers
        answers.append((f"\\boxed{{{first['reward_model']['ground_truth']}}}", 1.0))
    facts = {"data_source": first["data_source"], "extra_info": first["extra_info"]}
    for answer, wanted in answers:
        result = reward(**facts, ground_truth=first["reward_model"]["ground_truth"], solution_str=answer)
        if result["score"] != wanted:
            sys.exit(f"the reward of {answer!r} is {result['score']} ({result['verdict']}) instead of {wanted}")
    print(f"configuration accepted; {len(rows)} prompts: every token is the one that sampling uses; reward works")


if __name__ == "__main__":
    main(*sys.argv[1:])
