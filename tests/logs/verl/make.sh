# A whole run of verl needs a GPU: this calls what it writes its rollouts with, on answers that transformers draws.
$PYTHON -c '
import json
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from verl.trainer.ppo.ray_trainer import RayPPOTrainer

set_seed(7)
rows = [json.loads(line) for line in open("problems.jsonl") for _ in range(4)]
tokenizer, model = AutoTokenizer.from_pretrained("model"), AutoModelForCausalLM.from_pretrained("model")
inputs, outputs = [], []
for row in rows:
    chat = tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(chat, return_tensors="pt").input_ids
    out = model.generate(ids, do_sample=True, temperature=1.0, max_new_tokens=48)[0]
    inputs.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    outputs.append(tokenizer.decode(out[len(ids[0]):], skip_special_tokens=True))
golds = [row["answer"] for row in rows]
scores = [float(gold in output) for gold, output in zip(golds, outputs)]
RayPPOTrainer._write_generations(inputs, outputs, golds, scores, {"acc": scores}, "out", 1)
'
