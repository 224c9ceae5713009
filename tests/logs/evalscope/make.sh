mkdir data && cp problems.jsonl data/sums2.jsonl
$PYTHON -c '
from evalscope import TaskConfig, run_task

own = {"local_path": "data", "subset_list": ["sums2"], "prompt_template": "{question}", "metric_list": ["Rouge"]}
run_task(TaskConfig(
    model="model", model_args={"precision": "torch.float32", "device_map": "cpu"}, eval_type="llm_ckpt",
    datasets=["general_qa"], dataset_args={"general_qa": own}, dataset_dir="data", repeats=4, eval_batch_size=1,
    generation_config={"do_sample": True, "temperature": 1.0, "max_tokens": 48, "seed": 7},
    work_dir="out", no_timestamp=True,
))'
