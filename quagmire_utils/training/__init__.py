"""Train checkpoints: supervised fine-tuning, GRPO, the paper's trainers, and the micro worlds."""
