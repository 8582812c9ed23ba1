"""Run directories: the configuration, circuits and checkpoints of a training run."""
