# The registry of tasks looks for a file of a benchmark that is not asked for; without it, it calls the internet.
$PYTHON -c 'import importlib.util, pathlib
at = pathlib.Path(importlib.util.find_spec("lighteval").origin).parent / "tasks" / "tasks" / "tinyBenchmarks.pkl"
at.touch()'
sed -i s/TokenizersBackend/PreTrainedTokenizerFast/ model/tokenizer_config.json  # for transformers 4, which it needs
mkdir data && cp problems.jsonl data/test.jsonl
cat > sums2.py <<'PY'
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def prompt(line, task_name=None):
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="sums2",
        prompt_function=prompt,
        hf_repo="data",
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=48,
        metrics=[Metrics.pass_at_k_math(sample_params={"k": 1, "n": 4})],
        stop_sequence=[],
    )
]
PY
$PYTHON -m lighteval accelerate \
    "model_name=model,dtype=float32,device=cpu,batch_size=4,generation_parameters={temperature:1.0,max_new_tokens:48}" \
    "sums2|0" --custom-tasks sums2.py --output-dir out --save-details
