"""How the server says no: a status and one sentence, in JSON."""


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: Of HTTP, 4xx.
        message: What was wrong and the way out; it names no path of this machine.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
