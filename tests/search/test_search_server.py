"""The server over real sockets: answers, batches, limits, and hostile requests."""

import asyncio
import base64
import copy
import io
import json
import shutil
import socket
import struct
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.search import SearchIndex, build_index
from hgsl.search.encoder import Encoder
from hgsl.search.web import app as web
from hgsl.search.web import request_body, uploads
from hgsl.search.web.batcher import Batcher
from hgsl.search.web.errors import RequestError
from hgsl.search.web.queries import Query, answer_batch
from hgsl.search.web.server import MAX_HEAD, listen


@pytest.fixture(scope="module")
def shared_client(serve, shared_index):
    with httpx.Client(base_url=serve(shared_index), timeout=60) as session:
        yield session


@pytest.fixture
def client(shared_client):
    return shared_client


@pytest.fixture
def index(shared_index):
    return shared_index


@pytest.fixture
def photos(shared_index):
    return shared_index.root


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def refused(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert "/" not in body["error"].replace("x1,y1", "")
    return body["error"]


def test_the_contents_of_the_index_are_described(client):
    about = client.get("/api/index").json()
    assert about["images"] == 24
    assert about["labels"]["kind_03"] == 4
    assert about["threshold"] is None
    assert about["backbone"] == "test_resnet"


def test_an_uploaded_image_finds_what_the_index_finds(client, index, photos):
    path = photos / "kind_02/03.jpg"
    answer = client.post("/api/search", params={"k": 5}, content=path.read_bytes()).json()
    [expected] = index.search(path, k=5)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    assert answer["hits"][0] == pytest.approx(expected[0]._asdict())
    assert answer["match"] is None
    only = client.post("/api/search", params={"k": 50, "label": "kind_05"}, content=path.read_bytes()).json()
    assert [hit["label"] for hit in only["hits"]] == ["kind_05"] * 4


def test_a_condition_limits_every_search(client, photos):
    where = {"where": 'label in ["kind_05", "kind_01"] and path != "kind_05/00.jpg"', "k": 50}
    hits = client.post("/api/search", params=where, content=(photos / "kind_02/03.jpg").read_bytes()).json()["hits"]
    assert Counter(hit["label"] for hit in hits) == {"kind_05": 3, "kind_01": 4}
    assert len(client.get("/api/images/5/similar", params=where).json()["hits"]) == 6
    assert len(client.get("/api/images", params=where).json()) == 7
    assert client.get("/api/index").json()["fields"]["label"] == "text"
    for url in ("/api/images", "/api/images/5/similar"):
        error = refused(client.get(url, params={"where": "lable == 'x'"}), 422)
        assert error == "where, column 1: unknown field 'lable': did you mean 'label'?"
    refused(client.get("/api/images", params={"where": "x" * 2001}), 422)


@pytest.mark.parametrize("image_format", uploads.FORMATS)
def test_every_supported_format(client, photos, image_format):
    with Image.open(photos / "kind_02/03.jpg") as image:
        content = encoded(image, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    hits = client.post("/api/search", content=content, headers={"content-type": "text/html"}).json()["hits"]
    assert hits[0]["path"] == "kind_02/03.jpg"


def test_a_box_is_searched_like_a_cropped_image(client, index):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    cropped = client.post("/api/search", params={"box": "0.25,0.5,0.75,1", "k": 3}, content=encoded(image)).json()
    [expected] = index.search(image.crop((30, 40, 90, 80)), k=3)
    assert [hit["similarity"] for hit in cropped["hits"]] == pytest.approx(
        [hit.similarity for hit in expected], abs=1e-5
    )
    # The box refers to the upright image.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image.rotate(90, expand=True), exif=exif)
    again = client.post("/api/search", params={"box": "0.25,0.5,0.75,1", "k": 3}, content=turned).json()
    assert again == cropped


def test_an_image_of_the_index_finds_others(client, index):
    hits = client.get("/api/images/7/similar", params={"k": 4}).json()["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in index.similar(7, 4)]
    spread = client.get("/api/images", params={"k": 3}).json()
    assert [image["id"] for image in spread] == [0, 11, 23]
    assert len(client.get("/api/images", params={"label": "kind_01"}).json()) == 4


def test_no_match_below_the_threshold(serve, tmp_path, run, photos):
    build_index(tmp_path / "strict", photos, checkpoint=run, no_match=1, device="cpu", progress=False)
    url = serve(SearchIndex.open(tmp_path / "strict", device="cpu"))
    answer = httpx.get(f"{url}/api/images/7/similar").json()
    assert answer["match"] is False
    assert answer["threshold"] == 1
    assert answer["hits"]


def test_images_are_reencoded_and_revalidated(serve, shared_index, tmp_path):
    photos = shutil.copytree(shared_index.root, tmp_path / "photos")
    index = copy.copy(shared_index)
    index.root = photos
    client = httpx.Client(base_url=serve(index))
    first = client.get("/api/images/0/jpeg", params={"side": 32})
    assert first.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(first.content)) as image:
        assert max(image.size) == 32
    again = client.get("/api/images/0/jpeg?side=32", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    (photos / "kind_00/00.jpg").write_text("<script>alert(1)</script>")
    assert "update the index" in refused(client.get("/api/images/0/jpeg"), 410)
    (photos / "kind_00/00.jpg").unlink()
    refused(client.get("/api/images/0/jpeg"), 410)


def test_only_images_of_the_index_are_served(client):
    for path in ("24", "-1", "x", "1.5", "9999999999999999999999", "..%2f..%2fetc%2fpasswd", "%00", "0/../../x"):
        assert client.get(f"/api/images/{path}/jpeg").status_code in (404, 422), path
        assert client.get(f"/api/images/{path}/similar").status_code in (404, 422), path
    for path in ("/page/../app.py", "/..%2fapp.py", "//etc/passwd", "/docs", "/redoc", "/index.html"):
        assert refused(client.get(path), 404) == "Not Found"
    assert refused(client.put("/api/index"), 405)


def test_security_headers(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for response in (page, client.get("/api/index"), client.get("/api/images/99/jpeg")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in response.headers
        assert "server" not in response.headers
    for file in web.PAGE_FILES.values():
        text = (web.PAGE / file).read_text()
        assert "http://" not in text
        assert "https://" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "[::1", "[evil]:80"]
)
def test_a_foreign_host_name_is_refused(client, host):
    refused(client.get("/api/images/0/jpeg", headers={"host": host}), 400)


def test_allowed_host_names_pass(serve, index):
    url = serve(index, names=["images.example"])
    for host in ("localhost", "LOCALHOST:99", "127.0.0.1:1", "[::1]:80", "[::1]", "192.168.1.7", "Images.example:443"):
        assert httpx.get(f"{url}/api/index", headers={"host": host}).status_code == 200, host


def png(width, height, data=b"", depth=8, color=2):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb():
    """A PNG whose text chunks unpack to 200 MB."""
    body = b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20))
    chunk = struct.pack(">I", len(body[1])) + body[0] + body[1] + struct.pack(">I", zlib.crc32(body[0] + body[1]))
    whole = png(8, 8, zlib.compress(bytes(8 * 25)))
    return whole[:33] + chunk + whole[33:]


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
SMALL = encoded(Image.new("RGB", (9, 7), "red"))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"\x00", 415),
        (b"GIF89a", 415),
        (b"%PDF-1.7\n", 415),
        (b"MZ" + bytes(500), 415),
        (b"<html><body>photo</body></html>", 415),
        (SVG, 415),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94", 415),
        (encoded(Image.new("RGB", (9, 9)), "TIFF"), 415),
        (encoded(Image.new("RGB", (9, 9)), "ICO"), 415),
        (encoded(Image.new("RGB", (9, 9)), "PPM"), 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415),
        (SMALL[:50], 422),
        (encoded(Image.effect_noise((99, 99), 50), "JPEG")[:600], 422),
        (png(60_000, 60_000, zlib.compress(bytes(10_000))), 413),  # declares 3,600 million pixels
        (png(10_000, 10_000, zlib.compress(bytes(300_000_000), 9)), 413),  # has 100 million, in 300 KB
        (png(2**31 - 1, 2**31 - 1), 413),
        (png(0, 5), 415),
        (png(60_000, 1, zlib.compress(bytes(180_001))), 422),
        (png(1, 300_000, zlib.compress(bytes(1_200_000))), 422),
        (png(6_000, 5_000, depth=16), 413),
        (encoded(Image.effect_noise((99, 99), 50), "GIF")[:2000], 422),
        (encoded(Image.effect_noise((99, 99), 50), "WEBP")[:500], 422),
        (encoded(Image.effect_noise((99, 99), 50))[:2000], 422),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0), 413),
        (text_bomb(), 422),
        (bytes(uploads.MAX_BYTES + 1), 413),
        (bytes(4 * uploads.MAX_BYTES + 1), 413),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else f"{value[:8]!r}-{len(value)}",
)
def test_invalid_uploads_are_refused(client, content, status):
    refused(client.post("/api/search", content=content), status)


def test_a_long_body_without_a_length_is_refused(client):
    def chunks():
        for _ in range(25):
            yield bytes(1 << 20)

    refused(client.post("/api/search", content=chunks()), 413)


@pytest.mark.parametrize(
    "params",
    [
        {"k": 0},
        {"k": 201},
        {"k": "many"},
        {"k": "9" * 4000},
        {"box": "0,0,1"},
        {"box": "0,0,nan,1"},
        {"box": "0.5,0,0.5,1"},
        {"box": "0,0,2,1"},
        {"box": "a,b,c,d"},
        {"box": "0,0,0.01,0.01"},
        {"label": "x" * 1001},
    ],
    ids=lambda params: str(params)[:30],
)
def test_wrong_parameters_are_named(client, params):
    assert refused(client.post("/api/search", params=params, content=SMALL), 422)


@pytest.mark.parametrize(
    ("method", "url", "message"),
    [
        ("POST", "/api/search?k=1&lable=x", "unknown query parameter 'lable': did you mean 'label'?"),
        ("GET", "/api/images?limit=3", "unknown query parameter 'limit': known are k, label, path, where, index"),
        ("GET", "/api/images/0/similar?box=0,0,1,1", "unknown query parameter 'box': known are k, label, where, index"),
        ("GET", "/api/images/0/jpeg?sides=20", "unknown query parameter 'sides': did you mean 'side'?"),
        ("GET", "/api/index?k=1", "unknown query parameter 'k': known are index"),
    ],
)
def test_an_unknown_parameter_is_named_on_every_route(client, method, url, message):
    assert refused(client.request(method, url), 422) == message


def test_a_form_with_a_file_is_searched_like_its_bytes(client, photos):
    content = (photos / "kind_02/03.jpg").read_bytes() + b"\r\n--trailing\r\n"
    expected = client.post("/api/search", content=content).json()
    for form in ({"file": ("a.jpg", content)}, {"first": (None, "text"), "image": ("b", content, "image/jpeg")}):
        assert client.post("/api/search", files=form).json() == expected
    for form, message in (
        ({"text": (None, "only text")}, "the form has no file: send one, as curl -F file=@photo.jpg does"),
        ({"file": ("a.jpg", b"")}, "the file in the form is empty: send an image file"),
    ):
        refused = client.post("/api/search", files=form)
        assert (refused.status_code, refused.json()["error"]) == (422, message)
    for header in ("multipart/form-data", "multipart/form-data; boundary="):
        refused = client.post("/api/search", content=content, headers={"content-type": header})
        assert (refused.status_code, "no valid boundary" in refused.text) == (422, True)
    broken = client.post("/api/search", content=content, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (broken.status_code, "no file" in broken.text) == (422, True)


def test_several_labels_and_a_path(client, shared_index):
    listed = client.get("/api/images", params={"label": ["kind_01", "kind_04"], "k": 50}).json()
    assert [image["label"] for image in listed] == ["kind_01"] * 4 + ["kind_04"] * 4
    similar = client.get("/api/images/0/similar", params={"label": ["kind_01", "kind_04"], "k": 50}).json()["hits"]
    expected = [hit for hit in shared_index.similar(0, 50) if hit.label in ("kind_01", "kind_04")]
    assert [hit["id"] for hit in similar] == [hit.id for hit in expected]
    [image] = client.get("/api/images", params={"path": "kind_03/02.jpg"}).json()
    assert (image["id"], image["label"]) == (14, "kind_03")
    assert client.get("/api/images", params={"path": "../run/model.json"}).status_code == 404


def test_heat_maps_of_a_pair(client, shared_index):
    content = (shared_index.root / "kind_02/03.jpg").read_bytes()
    expected = shared_index.search(shared_index.root / "kind_02/03.jpg", 24)[0]
    score = next(hit.similarity for hit in expected if hit.id == 5)
    number = shared_index.find("kind_02/03.jpg")
    for answer in (
        client.post("/api/images/5/heat", content=content),
        client.get(f"/api/images/5/heat?query={number}"),
    ):
        heat = answer.json()
        assert heat["similarity"] == pytest.approx(score, abs=1e-4)
        assert heat["exact"]
        for name in ("query", "image"):
            picture = Image.open(io.BytesIO(base64.b64decode(heat[name].removeprefix("data:image/webp;base64,"))))
            assert (picture.format, picture.size) == ("WEBP", (32, 32))
    part = client.post("/api/images/5/heat?box=0,0,0.5,0.5", content=content).json()
    assert part["similarity"] != heat["similarity"]
    assert client.post("/api/images/5/heat", content=b"no image").status_code == 422
    assert client.get("/api/images/5/heat?query=24").status_code == 404


def test_an_unknown_label_is_refused(client):
    for url in ("/api/images?label=none", "/api/images/0/similar?label=kind"):
        refused(client.get(url), 404)


def test_overlong_requests_are_refused(client):
    assert "address is longer" in refused(client.get("/api/index", params={"x": "y" * 40_000}), 414)
    assert "headers are longer" in refused(client.get("/api/index", headers={"x": "y" * 20_000}), 431)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nx: " + b"y" * (MAX_HEAD + 100),
        b"GET\r\n\r\n",
        b"\r\n\r\n" * 9 + b"{}\r\n",
    ],
    ids=["tls", "endless header", "no target", "no http"],
)
def test_invalid_http_gets_json_too(client, request_bytes):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(request_bytes)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert "error" in json.loads(body)


def test_a_slow_body_is_refused(client, monkeypatch):
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_an_unfinished_request_is_refused_and_a_begun_one_is_not(client, monkeypatch):
    monkeypatch.setattr("hgsl.search.web.server.HEAD_SECONDS", 0.05)
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=30) as begun, socket.create_connection(address, timeout=30) as slow:
        head = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        begun.sendall(head % len(SMALL) + SMALL[:20])
        slow.sendall(b"GET /api/index HTTP/1.1\r\nhost: loc")
        answer = b""
        while chunk := slow.recv(65536):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert "did not arrive" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        begun.sendall(SMALL[20:])
        assert begun.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_longest_condition_fits_into_an_address(client):
    condition = f'path == "{"鸟" * 1989}"'
    assert len(condition) == 2000 - 1
    assert client.get("/api/images", params={"where": condition}).json() == []


def test_a_client_that_disconnects_leaves_no_traceback(index):
    messages = iter([{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "http_version": "1.1"}
    asyncio.run(web.create_app(index)({**scope, "headers": [(b"host", b"localhost")]}, receive, send))
    assert sent[0]["status"] == 400  # which no client reads


def test_uploads_are_counted(serve, index, monkeypatch):
    monkeypatch.setattr(request_body, "MAX_UPLOADS", 1)
    url = httpx.URL(serve(index))
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
        while (answer := httpx.post(f"{url}/api/search", content=SMALL)).status_code == 200:
            pass  # until the server has received the one that does not end
        assert "too many" in refused(answer, 429)
        assert "too many" in refused(httpx.post(f"{url}/api/images/5/heat", content=SMALL), 429)
    while httpx.post(f"{url}/api/search", content=SMALL).status_code == 429:
        pass  # until it has noticed the disconnect


def test_concurrent_requests_share_forward_passes(client, index, photos, monkeypatch):
    sizes, gate, vectors = [], threading.Event(), Encoder.vectors

    def counted(self, tensors):
        gate.wait(30)  # until all are waiting, so that the batches are as large as possible
        sizes.append(len(tensors))
        return vectors(self, tensors)

    paths = sorted(photos.glob("*/*.jpg"))
    expected = [index.search(path, k=3)[0] for path in paths]
    monkeypatch.setattr(Encoder, "vectors", counted)
    with ThreadPoolExecutor(len(paths)) as pool:
        asked = [pool.submit(client.post, "/api/search", params={"k": 3}, content=path.read_bytes()) for path in paths]
        threading.Timer(0.5, gate.set).start()
        answers = [future.result().json()["hits"] for future in asked]
    for hits, right in zip(answers, expected, strict=True):
        assert [hit["id"] for hit in hits] == [hit.id for hit in right]
    assert sum(sizes) == len(paths)
    assert max(sizes) > 4
    assert len(sizes) < len(paths) / 2


def test_a_batch_answers_each_query_like_a_single_one(index, photos):
    tensors = [index.encoder.read(path) for path in sorted(photos.glob("*/02.jpg"))]
    queries = [
        *(Query(tensors[0], 1), Query(tensors[1], 5, index.condition(label="kind_01")), Query(tensors[2], 3)),
        *(Query(3, 4), Query(3, 4, index.condition(label="kind_00")), Query(9, 24)),
    ]
    together = answer_batch(index, queries)
    for query, hits in zip(queries, together, strict=True):
        [alone] = answer_batch(index, [query])
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert len(hits) <= query.k
    assert len(together[4]) == 3  # the four images of the label, itself excluded


def test_the_batcher_refuses_a_flood_and_survives_an_error():
    def work(items):
        if "bad" in items:
            raise RuntimeError("out of memory")
        return [item.upper() for item in items]

    async def scenario():
        async with Batcher(work, max_batch=2, max_waiting=3) as batcher:
            results = await asyncio.gather(*(batcher.submit(word) for word in "abcde"), return_exceptions=True)
            assert [result for result in results if isinstance(result, str)] == ["A", "B", "C"]
            assert [result.status for result in results if isinstance(result, RequestError)] == [429, 429]
            with pytest.raises(RuntimeError):
                await batcher.submit("bad")
            assert await batcher.submit("good") == "GOOD"
            gone = asyncio.ensure_future(batcher.submit("gone"))
            await asyncio.sleep(0)
            gone.cancel()
            assert await batcher.submit("next") == "NEXT"

    asyncio.run(scenario())


def test_a_search_without_memory_is_refused(client, monkeypatch):
    def forward(*_):
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr("hgsl.search.encoder.forward", forward)
        assert "not enough memory" in refused(client.post("/api/search", content=SMALL), 503)
    assert client.post("/api/search", content=SMALL).status_code == 200


def test_load_on_loopback_without_an_error(client, photos):
    contents = [path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: client.post("/api/search", content=contents[i % 24]), range(200)))
    assert {answer.status_code for answer in answers} == {200}
    for number, answer in enumerate(answers):
        assert answer.json()["hits"][0]["id"] == number % 24


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(serve, index):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install '.[dev]'")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{serve(index)}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    statuses = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in modes:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=60,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def call(case):
                statuses[case.call_and_validate(checks=checks).status_code] += 1

            try:
                call()
            except Unsatisfiable:  # nothing about a request without parameters can be wrong
                assert operation.path in ("/api/indexes", "/healthz", "/metrics")
    assert sum(statuses.values()) > 300
    assert {200, 404, 415, 422} <= set(statuses)


def test_an_index_that_cannot_be_read_is_a_refusal(client, index, monkeypatch):
    def unreachable(*_):
        raise InputError("Milvus at http://milvus:19530/photos: connection refused")

    requests = ("/api/images", "/api/images/3/similar", "/api/images/3/jpeg", "/api/images/3/heat?query=4")
    with monkeypatch.context() as context:
        for name in ("images", "vectors", "search"):
            context.setattr(index._snapshot, name, unreachable)
        for request in requests:
            assert "cannot be read at present" in refused(client.get(request), 503)
        assert "cannot be read at present" in refused(client.post("/api/search", content=SMALL), 503)
        context.setattr(index._snapshot, "search", lambda *_: 1 / 0)
        answer = httpx.post(client.base_url.join("/api/search"), content=SMALL)  # uvicorn ends the connection
        assert "the server failed" in refused(answer, 500)
    assert {client.get(request).status_code for request in requests} == {200}


def test_a_name_that_cannot_be_one_of_a_host_is_refused():
    with pytest.raises(InputError, match=r"cannot listen on a+ port 0"):
        listen(70 * "a", 0)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_out_of_range_is_refused(port):
    """The system would listen on its lower 16 bits."""
    with pytest.raises(InputError, match="from 0 to 65535"):
        listen("127.0.0.1", port)
