"""Tests of hgsl; a package, so that test files can import ``tests.helpers``."""
