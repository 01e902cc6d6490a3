"""Training: the loop, the optimizer and its groups, checkpoints, the run folder."""
