"""Training and its evaluation: the driver of runs, the loop, the run folder."""
