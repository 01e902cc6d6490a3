"""Adapters: one function per data set, from a folder to a manifest."""
