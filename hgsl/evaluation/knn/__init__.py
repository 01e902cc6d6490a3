"""Exact k nearest neighbors in a fixed order, within a memory budget: ``knn.k_nearest`` is the only entry point."""
