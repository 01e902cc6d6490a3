"""Command-line tools, one module each: parse the arguments, call the library, print."""
