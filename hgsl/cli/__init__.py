"""Command-line tools, one module each: parse, build, call."""
