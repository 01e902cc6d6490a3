"""Parts of a training run, built from its settings."""
