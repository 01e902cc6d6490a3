"""Conditions on the images of a search, such as ``label in ["rose", "tulip"] and year >= 2020``."""
