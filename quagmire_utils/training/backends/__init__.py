"""Train as the paper trained: SFT with LLaMA-Factory, GRPO with verl, each on the GPUs of one machine. App. B.2.

Each is installed in an environment of its own (`./reproduce.sh setup llamafactory`, `./reproduce.sh setup verl`). A run
is a folder of files that a person can read, change, and start by hand with its run.sh. The back-end tokenises its data
before it trains, and every token is compared with those of sampling and of the generalization loss.
"""
