"""Helpers that every other subpackage may import; this one imports nothing else of hgsl."""
