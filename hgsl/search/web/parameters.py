"""Check of the names of query parameters, of which FastAPI ignores unknown ones."""

from fastapi import Request

from hgsl.common.suggestions import nearest
from hgsl.search.web.errors import RequestError

MAX_SHOWN = 40  # characters of an unknown name that the message repeats


async def check_known(request: Request) -> None:
    """Checks that a route has every parameter of the request's query.

    Raises:
        RequestError: The message names the first unknown parameter, and the nearest one of the route.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name in known:
            continue
        shown = name[:MAX_SHOWN]
        close = nearest(shown, known)
        hint = f"did you mean {close!r}?" if close else f"known are {', '.join(known) or 'none'}"
        raise RequestError(422, f"unknown query parameter {shown!r}: {hint}")
