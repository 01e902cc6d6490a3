"""Exact nearest neighbors of every query, in a fixed order, within a memory budget."""
