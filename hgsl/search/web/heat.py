"""Heat maps of a query and an image of the index, as pictures for the page."""

import base64
import io
from pathlib import Path

from PIL import Image

from hgsl.common.errors import InputError
from hgsl.common.locations import open_image
from hgsl.evaluation.heatmaps import explain_pair, show_heat
from hgsl.search.encoder import Encoder
from hgsl.search.web import schemas, uploads
from hgsl.search.web.errors import RequestError


def heat_maps(encoder: Encoder, query: Path | str | bytes, box: uploads.Box | None, image: Path | str) -> schemas.Heat:
    """Returns both images, each as the model sees it, with the parts that make their similarity.

    Args:
        encoder: The model of the index.
        query: An image of the index, or an uploaded file.
        box: The part of the query that is searched.
        image: An image of the index.

    Raises:
        RequestError: 410 an image of the index cannot be read any more, 422 the upload cannot be decoded, or the model
            has no heat maps.
    """
    try:
        one, other = _decode(query, box, encoder.side), _decode(image, None, encoder.side)
    except RequestError:
        raise
    except (InputError, *uploads.FAILURES):
        raise RequestError(410, "an image was deleted or cannot be read any more: update the index") from None
    try:
        heat = explain_pair(encoder.model, one, other)
    except InputError as error:
        raise RequestError(422, str(error)) from None
    pictures = (show_heat(encoder.model, one, heat.one), show_heat(encoder.model, other, heat.other))
    query_picture, image_picture = map(_data_url, pictures)
    return schemas.Heat(similarity=heat.similarity, exact=heat.exact, query=query_picture, image=image_picture)


def _decode(source: Path | str | bytes, box: uploads.Box | None, side: int) -> Image.Image:
    if not isinstance(source, bytes):
        pixels = uploads.decode_bounded(open_image(source), box, side)
    else:
        try:
            pixels = uploads.decode_bounded(io.BytesIO(source), box, side, uploads.FORMATS)
        except (InputError, *uploads.FAILURES):
            raise RequestError(422, "the image is damaged or not supported: it cannot be decoded") from None
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
