"""Synthetic data set: procedurally drawn butterflies, without files."""
