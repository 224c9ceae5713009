cat > sums2.yaml <<'YAML'
task: sums2
dataset_path: json
dataset_kwargs: {data_files: {test: problems.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
repeats: 4
generation_kwargs: {do_sample: true, temperature: 1.0, max_gen_toks: 48, until: []}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: vote, filter: [{function: regex, regex_pattern: "boxed.([0-9]+)"}, {function: majority_vote}, {function: take_first}]}
YAML
$PYTHON -m lm_eval run --model hf --model_args pretrained=model,dtype=float32 --tasks sums2 --include_path . \
    --apply_chat_template --output_path out --log_samples --device cpu --batch_size 4
