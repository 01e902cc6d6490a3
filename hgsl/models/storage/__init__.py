"""Saved models: the description and weights of an embedder, in a folder or on the Hugging Face Hub."""
