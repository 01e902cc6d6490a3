"""Training: the loop, the optimiser and its groups, checkpoints, the run folder."""
