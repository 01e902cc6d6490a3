"""Adapters of published benchmarks, each from its official archive to a manifest."""
