"""The channel graph: which channels of a network can be removed together."""
