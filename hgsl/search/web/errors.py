"""Error response to a request: an HTTP status and one sentence, sent as JSON."""


class RequestError(Exception):
    """An error response to a request.

    Attributes:
        status: The HTTP status, 4xx, or 503 where the server lacks memory.
        message: What is wrong and the way out; it names no path of this machine.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
