"""The file in a form of the type ``multipart/form-data`` (RFC 7578), as ``curl -F`` and HTML forms send one."""

from email.message import Message

from hgsl.search.web.errors import RequestError


def boundary_of(content_type: str) -> bytes | None:
    """The boundary between the parts of a form, or None if the header names no form.

    Raises:
        RequestError: The header names a form without a boundary.
    """
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return None
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 70:  # RFC 2046
        raise RequestError(422, "the form has no valid boundary: send the bytes of an image file as the body")
    return boundary.encode("latin-1", "replace")


def file_of_form(body: bytes, boundary: bytes) -> bytes:
    """Returns the content of the first part with a file name, byte for byte.

    Raises:
        RequestError: No part has one, or the file is empty.
    """
    delimiter = b"\r\n--" + boundary
    start = (b"\r\n" + body[: len(delimiter)]).startswith(delimiter)
    position = len(delimiter) - 2 if start else _after(body, delimiter, 0)
    while 0 <= position < len(body) and body[position : position + 2] != b"--":
        head = body.find(b"\r\n\r\n", position)
        end = body.find(delimiter, head)
        if head < 0 or end < 0:
            break
        if b"filename" in body[position:head].lower():
            if end <= head + 4:
                raise RequestError(422, "the file in the form is empty: send an image file")
            return body[head + 4 : end]
        position = end + len(delimiter)
    raise RequestError(422, "the form has no file: send one, as curl -F file=@photo.jpg does")


def _after(body: bytes, delimiter: bytes, start: int) -> int:
    """The position after the next delimiter, or -1."""
    position = body.find(delimiter, start)
    return position + len(delimiter) if position >= 0 else -1
