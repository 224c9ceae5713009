# vLLM writes the batch files of OpenAI's interface.
mkdir out
$PYTHON -c 'import json
for line in open("problems.jsonl"):
    row = json.loads(line)
    body = {"model": "model", "messages": [{"role": "user", "content": row["question"]}], "n": 4, "seed": 7}
    body |= {"temperature": 1.0, "max_completion_tokens": 48}
    print(json.dumps({"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}))' > out/requests.jsonl
$PYTHON -m vllm.entrypoints.launchers.run_batch -i out/requests.jsonl -o out/answers.jsonl --model model --dtype float32 \
    --max-model-len 256 --gpu-memory-utilization 0.1 --enforce-eager
