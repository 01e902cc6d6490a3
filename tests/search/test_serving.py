"""The server over several indexes and over states that are published while it runs; health and metrics."""

import re

import httpx
import pytest
from PIL import Image

from hgsl.search import SearchIndex
from hgsl.search.web import served
from hgsl.search.web.metrics import Metrics, series
from hgsl.search.web.served import ServedIndex


@pytest.fixture(autouse=True)
def frequent(monkeypatch):
    monkeypatch.setattr(served, "REFRESH_SECONDS", 0.02)


def wait_until(condition):
    while not condition():
        pass


def test_a_new_state_is_served_without_a_restart(serve, build, tmp_path, run, photos):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    client = httpx.Client(base_url=serve(SearchIndex.open(folder, device="cpu")), timeout=60)
    assert client.get("/api/index").json()["images"] == 24
    (photos / "kind_00/00.jpg").unlink()
    Image.new("RGB", (60, 50), "red").save(photos / "kind_00/new.jpg")
    build(folder, photos)
    wait_until(lambda: client.get("/healthz").json()["indexes"][""]["state"] == 2)
    hits = client.post("/api/search?k=1", content=(photos / "kind_00/new.jpg").read_bytes()).json()["hits"]
    assert hits[0]["path"] == "kind_00/new.jpg"
    assert client.get("/api/images/0/jpeg").status_code == 404
    assert client.get(f"/api/images/{hits[0]['id']}/jpeg").status_code == 200


def test_a_damaged_state_leaves_the_present_one(serve, build, tmp_path, run, photos):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    client = httpx.Client(base_url=serve(SearchIndex.open(folder, device="cpu")), timeout=60)
    content = (folder / "index.json").read_text()
    (folder / "index.json").write_text("{")
    wait_until(lambda: not client.get("/healthz").json()["indexes"][""]["current"])
    assert len(client.get("/api/images/3/similar?k=2").json()["hits"]) == 2
    assert int(re.search(r'hgsl_refresh_errors_total{index=""} (\d+)', client.get("/metrics").text)[1]) > 0
    (folder / "index.json").write_text(content)
    wait_until(lambda: client.get("/healthz").json()["indexes"][""]["current"])


def test_a_search_in_progress_keeps_its_state(build, tmp_path, run, photos):
    build(tmp_path / "index", photos, checkpoint=run)
    one = ServedIndex(SearchIndex.open(tmp_path / "index", device="cpu"))
    before, encoder = one.index, one.index.encoder
    one.refresh()
    assert one.index is before
    (photos / "kind_00/00.jpg").unlink()
    build(tmp_path / "index", photos)
    one.refresh()
    assert (len(before), len(one.index)) == (24, 23)
    assert before.similar(0, 1)
    assert one.index.encoder is encoder  # the model is not loaded again


def test_several_indexes_are_served_by_name(serve, shared_index, build, tmp_path, run, photos):
    build(tmp_path / "other", photos / "kind_01", checkpoint=run)
    indexes = {"all": shared_index, "one": SearchIndex.open(tmp_path / "other", device="cpu")}
    client = httpx.Client(base_url=serve(indexes), timeout=60)
    assert client.get("/api/indexes").json() == [{"name": "all", "images": 24}, {"name": "one", "images": 4}]
    assert client.get("/api/index").json()["images"] == 24
    assert client.get("/api/index?index=one").json()["images"] == 4
    content = (photos / "kind_01/02.jpg").read_bytes()
    hits = client.post("/api/search?index=one&k=9", content=content).json()["hits"]
    assert (hits[0]["path"], len(hits)) == ("02.jpg", 4)
    assert len(client.get("/api/images?index=one").json()) == 4
    assert client.get("/api/images/5/similar").status_code == 200
    assert client.get("/api/images/5/similar?index=one").status_code == 404
    assert "did you mean 'one'" in client.get("/api/index?index=onee").json()["error"]


def test_metrics_count_requests_by_route(serve, shared_index):
    client = httpx.Client(base_url=serve(shared_index), timeout=60)
    for number in (1, 2, 99):
        client.get(f"/api/images/{number}/similar")
    client.get("/nowhere/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    route = 'route="/api/images/{image}/similar"'
    assert f'hgsl_requests_total{{method="GET",{route},status="200"}} 2' in lines
    assert f'hgsl_requests_total{{method="GET",{route},status="404"}} 1' in lines
    assert 'hgsl_requests_total{method="GET",route="other",status="404"} 1' in lines
    assert f'hgsl_request_seconds_bucket{{{route},le="+Inf"}} 3' in lines
    assert 'hgsl_index_images{index=""} 24' in lines
    assert all(re.fullmatch(r'(# (HELP|TYPE) \w+ .+)|(\w+\{(\w+="[^"]*",?)*\} [\d.e+-]+)', line) for line in lines)


def test_durations_fall_into_buckets():
    metrics = Metrics()
    for seconds in (0.005, 0.006, 99):
        metrics.add("GET", "/", 200, seconds)
    lines = metrics.lines()
    assert 'hgsl_request_seconds_bucket{route="/",le="0.005"} 1' in lines
    assert 'hgsl_request_seconds_bucket{route="/",le="0.01"} 2' in lines
    assert 'hgsl_request_seconds_bucket{route="/",le="10.0"} 2' in lines
    assert 'hgsl_request_seconds_count{route="/"} 3' in lines
    assert series("m", "gauge", "M.", [({"a": 'b"\\\n'}, 1)])[2] == 'm{a="b\\"\\\\\\n"} 1'
