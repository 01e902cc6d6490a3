"""Parts of a training run: data sets, model, objective, optimizer, masks."""
