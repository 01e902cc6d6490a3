"""Small helpers every other part may use; this package imports nothing else of hgsl."""
