cat > sums2.py <<'PY'
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def sums2():
    dataset = json_dataset("problems.jsonl", FieldSpec(id="id", input="question", target="answer"))
    config = GenerateConfig(temperature=1.0, max_tokens=48, seed=7)
    return Task(dataset=dataset, solver=generate(), scorer=match(numeric=True), config=config)
PY
$PYTHON -m inspect_ai eval sums2.py --model hf/local -M model_path=model -M device=cpu --epochs 4 --log-dir out \
    --display plain
