"""Procedurally drawn butterflies, a data set without files."""
