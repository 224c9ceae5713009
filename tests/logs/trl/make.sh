$PYTHON -c '
import json
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

rows = [json.loads(line) for line in open("problems.jsonl")]
chats = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]


def reward(completions, answer, log_extra=None, **_):
    log_extra("answer", list(answer))
    return [float(gold in said[0]["content"]) for said, gold in zip(completions, answer)]


config = GRPOConfig(
    output_dir="out", max_steps=1, per_device_train_batch_size=16, num_generations=4, max_completion_length=48, seed=7,
    log_completions=True, logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
)
GRPOTrainer("model", reward, config, train_dataset=Dataset.from_list(chats)).train()
'
rm -rf out/README.md
