"""Search of settings by MAP@R on class-disjoint folds of the training classes."""
