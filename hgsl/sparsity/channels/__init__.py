"""Channel dependencies of a network, the masks that close channels, and their removal."""
