"""Check of settings, by themselves and against each other."""


def refuse(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` if ``condition`` holds; the command line shows it as one line."""
    if condition:
        raise ValueError(message)
