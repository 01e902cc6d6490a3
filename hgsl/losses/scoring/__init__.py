"""Similarities of embeddings to class centers: of every pair, or of the nearest centers alone."""
