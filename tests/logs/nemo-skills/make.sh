# NEMO_SKILLS: a checkout of github.com/NVIDIA-NeMo/Skills. SERVER: a Python with vLLM.
$PYTHON -c 'import json
for line in open("problems.jsonl"):
    row = json.loads(line)
    print(json.dumps({"id": row["id"], "problem": row["question"], "expected_answer": row["answer"]}))' > test.jsonl
echo 'user: "{problem}"' > prompt.yaml
$SERVER -m vllm.entrypoints.openai.api_server --model model --dtype float32 --max-model-len 256 --gpu-memory-utilization 0.1 --enforce-eager --port 8123 > server.log 2>&1 &
trap "kill $!" EXIT
for _ in $(seq 200); do curl -sf http://127.0.0.1:8123/v1/models > /dev/null && break; sleep 1; done
for seed in 0 1 2 3; do
    PYTHONPATH=$NEMO_SKILLS $PYTHON -m nemo_skills.inference.generate ++input_file=test.jsonl ++prompt_config=$PWD/prompt.yaml \
        ++output_file=out/sums2/output-rs$seed.jsonl ++server.server_type=vllm ++server.model=model ++server.host=127.0.0.1 \
        ++server.port=8123 ++inference.temperature=1.0 ++inference.top_p=1.0 ++inference.tokens_to_generate=48 \
        ++inference.random_seed=$seed
done
