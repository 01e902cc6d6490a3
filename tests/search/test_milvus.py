"""An index in Milvus gives the results of a folder: in a local file, and on a real server where one can be started."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgsl.cli import search
from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.search import SearchIndex
from hgsl.search.encoder import Encoder
from hgsl.search.milvus import schema, snapshot, states, store, update
from hgsl.search.milvus.client import is_server
from hgsl.search.stores.address import open_store, split_address
from tests.helpers import environment, fails
from tests.search.test_folder_store import fake_model, without_numbers

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install 'hgsl[milvus]'")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'hgsl[milvus]'")

CONDITIONS = [
    *(None, 'label == "rose"', 'label != "rose"', "not label == 'rose'", "label > 'p'", "label == ''"),
    *("year >= 2020", "year < 2020.5", "not year < 2020.5", "year != 2020", "year in [2019, 2021.5]"),
    *("year not in [2019]", "year <= -1e250", "size > 0 and time > 1e9", "path >= 'kind_03'"),
    *("color == 'it\"s'", "color == 'a\\\\\nb'", "color != '\x01\u2028'", "color == '%'", "größe > 1", "größe != 2.5"),
    *("color in ['ä', 'red'] and not (year > 2019 or label == '')", "color == ''"),
]
SERVER = Path(__file__).with_name("milvus_server.py")


class Server:
    """A real Milvus server, and its address."""

    def __init__(self, command, uri):
        self.uri = uri
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def restart(self, how):
        """Ends the server and starts it again: ``stop`` or ``kill``."""
        self.process.stdin.write(f"{how}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ready\n"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real Milvus server; ``HGSL_TEST_MILVUS`` names the Python that has the package ``milvus``."""
    python = os.environ.get("HGSL_TEST_MILVUS") or (sys.executable if find_spec("milvus") else None)
    if python is None:
        pytest.skip("no Milvus server: pip install milvus==2.3.5, in an environment that HGSL_TEST_MILVUS may name")
    isolated = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace, and the Milvus server would listen on all interfaces")
    folder = tmp_path_factory.mktemp("milvus")
    command = [*isolated, python, SERVER, folder / "data", folder / "socket"]
    server = Server(command, f"unix:{folder / 'socket'}")
    yield server
    server.process.stdin.close()
    server.process.wait(60)


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.slow)])
def uri(request, tmp_path):
    """The address of an index that does not exist yet."""
    if request.param == "file":
        return str(tmp_path / "index.db")
    return f"{request.getfixturevalue('server').uri}#t{abs(hash(str(tmp_path))):x}"


@pytest.fixture
def opened():
    """Opens indexes that are closed after the test: a local file serves one process at a time."""
    indexes = []

    def open_index(address):
        indexes.append(SearchIndex.open(address, device="cpu"))
        return indexes[-1]

    yield open_index
    for index in indexes:
        index.store.close()


def write_table(path, photos, seed):
    generator = np.random.default_rng(seed)
    lines = ["path,label,year,color,größe"]
    for image in sorted(photos.rglob("*.jpg")):
        labels, years = ["rose", "tulip", "oak", ""], ["2019", "2020", "2021.5", ""]
        cells = (labels, years, ["red", '"it""s"', "ä", '"a\\\nb"', ""], ["1", "2.5", ""])
        chosen = [column[generator.integers(len(column))] for column in cells]
        lines.append(",".join([str(image.relative_to(photos)), *chosen]))
    path.write_text("\n".join(lines) + "\n")


def assert_equal(one, other):
    queries = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    queries[0] = one.vector(one.spread(1)[0])
    assert (len(one), dict(one.labels), one.threshold) == (len(other), dict(other.labels), other.threshold)
    for where in CONDITIONS:
        for k in (1, 6, 60):
            assert without_numbers(one.search(queries, k, where=where)) == without_numbers(
                other.search(queries, k, where=where)
            ), where
        assert one.count(one.condition(where)) == other.count(other.condition(where)), where


def test_the_results_are_those_of_a_folder(build, tmp_path, run, photos, uri, opened, counted):
    folder, table = tmp_path / "index", tmp_path / "labels.csv"
    shutil.copy(photos / "kind_00/00.jpg", photos / "kind_05/copy.jpg")
    (run / "no_match.json").write_text('{"threshold": 0.2, "metric": "cosine", "calibration": {"asked_rate": 0.25}}')
    write_table(table, photos, seed=0)
    reports = [build(address, photos, checkpoint=run, labels=table) for address in (folder, uri)]
    assert reports[0].notes == reports[1].notes
    one, other = opened(folder), opened(uri)
    assert_equal(one, other)
    assert [hit.path for hit in other.similar(other.search(photos / "kind_02/01.jpg", 1)[0][0].id, 5)] == [
        hit.path for hit in one.similar(one.search(photos / "kind_02/01.jpg", 1)[0][0].id, 5)
    ]
    assert other.path(3) == one.path(3)
    assert 99 not in other
    other.store.close()
    write_table(table, photos, seed=1)
    (photos / "kind_01/00.jpg").unlink()
    Image.new("RGB", (60, 50), "red").save(photos / "kind_01/new.jpg")
    (photos / "kind_01/cut.jpg").write_bytes(b"no image")
    counted.clear()
    reports = [build(address, photos) for address in (folder, uri)]
    assert sum(counted) == 2  # the new image, for either
    assert reports[0].notes == reports[1].notes
    assert reports[0].broken == reports[1].broken
    assert (reports[1].new, reports[1].dropped, reports[1].unchanged) == (2, 1, 24)
    assert_equal(opened(folder), opened(uri))


def test_an_unchanged_folder_writes_no_state_and_another_model_is_refused(build, tmp_path, run, photos, make_run):
    uri = str(tmp_path / "index.db")
    record = build(uri, photos, checkpoint=run).record
    assert build(uri, photos).record == record
    with pytest.raises(InputError, match="made with another model"):
        build(uri, photos, checkpoint=make_run("other", seed=1))
    with pytest.raises(InputError, match="--milvus-index, not --faiss"):
        build(uri, photos, faiss="Flat")


@pytest.mark.slow
def test_a_killed_run_shows_no_half_state_and_resumes(build, tmp_path, run, photos, uri, opened, counted):
    build(uri, photos, checkpoint=run)
    before = opened(uri)
    hits = before.search(before.vector(0), 24)
    before.store.close()
    shutil.rmtree(photos / "kind_00")
    for number in range(12):
        Image.new("RGB", (60, 50), (20 * number, 99, 9)).save(photos / f"kind_01/new{number}.jpg")
    script = (
        "import os, signal, sys; from hgsl.search import build_index; from hgsl.search.milvus import update\n"
        "update.FLUSH_SECONDS = 0\n"
        "from hgsl.search.encoder import Encoder; vectors = Encoder.vectors; calls = []\n"
        "def killed(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return vectors(*arguments)\n"
        "Encoder.vectors = killed\n"
        "def publish(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "update.MilvusUpdate.publish = publish\n"
        "build_index(sys.argv[1], sys.argv[2], device='cpu', batch_size=4, progress=False)"
    )
    for batches in (3, 99):  # in the middle of embedding, then with everything but the record written
        done = subprocess.run([sys.executable, "-c", script, uri, photos, str(batches)], env=environment())
        assert done.returncode == -signal.SIGKILL
        index = opened(uri)
        assert len(index) == 24
        assert index.search(index.vector(0), 24) == hits
        assert index.count(index.condition("label == 'kind_00'")) == 4
        index.store.close()
    counted.clear()
    report = build(uri, photos, batch_size=4)
    assert (report.images, report.new, report.dropped, report.resumed) == (32, 12, 4, 12)
    assert counted == []
    build(tmp_path / "folder", photos, checkpoint=run)
    one, other = opened(tmp_path / "folder"), opened(uri)
    [hits], [expected] = (index.search(one.vector(one.spread(1)[0]), 40) for index in (other, one))
    assert {hit.path: hit.similarity for hit in hits} == pytest.approx(  # of other batches, hence other roundings
        {hit.path: hit.similarity for hit in expected}, abs=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_was_restarted_gives_the_same_answers(build, tmp_path, run, photos, server, how):
    uri = f"{server.uri}#restarted_{how}"
    build(uri, photos, checkpoint=run)
    index = SearchIndex.open(uri, device="cpu")
    queries = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    results = [index.search(queries, 24), index.search(queries, 3, where="label != 'kind_01'")]
    server.restart(how)
    opened = SearchIndex.open(uri, device="cpu")
    for after in (index, opened):  # also of a process that runs meanwhile
        assert [after.search(queries, 24), after.search(queries, 3, where="label != 'kind_01'")] == results
    (photos / "kind_00/00.jpg").unlink()
    assert build(uri, photos).images == 23
    for each in (index, opened):
        each.store.close()


def test_a_deletion_of_a_killed_run_is_undone(build, tmp_path, run, photos, monkeypatch, opened):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    moved = photos.parent / "moved.jpg"
    (photos / "kind_00/00.jpg").rename(moved)
    with monkeypatch.context() as context:
        context.setattr(update.MilvusUpdate, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(uri, photos)
    moved.rename(photos / "kind_00/00.jpg")
    report = build(uri, photos)
    assert (report.images, report.unchanged, report.record["state"]) == (24, 24, 2)
    index = opened(uri)
    assert index.search(index.vector(0), 1)[0][0].path == "kind_00/00.jpg"


def test_rows_are_read_in_pages(build, tmp_path, run, photos, monkeypatch, opened, counted):
    for module in (schema, snapshot):
        monkeypatch.setattr(module, "PAGE", 5)
    for number in range(7):
        shutil.copy(photos / "kind_00/00.jpg", photos / f"kind_03/copy{number}.jpg")
    folder, uri = tmp_path / "index", str(tmp_path / "index.db")
    build(folder, photos, checkpoint=run)
    build(uri, photos, checkpoint=run, milvus_index="HNSW M=8 efConstruction=64 ef=64")
    shutil.rmtree(photos / "kind_01")
    for number in range(12):
        Image.new("RGB", (60, 50), (20 * number, 99, 9)).save(photos / f"kind_02/new{number}.jpg")
    with monkeypatch.context() as context:
        context.setattr(update.MilvusUpdate, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(uri, photos)
    counted.clear()
    report = build(uri, photos)
    assert (report.new, report.dropped, report.unchanged, report.resumed) == (12, 4, 27, 12)
    assert counted == []
    build(folder, photos)
    states = [opened(address).store.open() for address in (folder, uri)]
    queries = open_vectors(np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32))
    one, other = (without_numbers(state.search_exactly(queries, 9)) for state in states)
    assert one == other
    assert states[0].labeled()[1] == states[1].labeled()[1]


def test_rows_are_removed_when_no_reader_sees_them(build, tmp_path, run, photos, opened):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    reader = opened(uri)
    hits = reader.search(reader.vector(0), 24)
    shutil.rmtree(photos / "kind_00")
    build(uri, photos)
    shutil.rmtree(photos / "kind_01")
    build(uri, photos)
    assert reader.search(reader.vector(0), 24) == hits  # of the state before the previous one
    Image.new("RGB", (60, 50), "red").save(photos / "new.jpg")
    build(uri, photos)
    [answer] = reader.store._client.query("hgsl", filter="id >= 0", output_fields=["count(*)"])
    assert answer["count(*)"] == 17 + 4  # without the images of kind_00, with those of kind_01


def test_a_search_waits_for_rows_until_they_are_old(monkeypatch):
    levels = []

    class Client:
        def query(self, *_, consistency_level, **__):
            levels.append(consistency_level)
            return []

    record = {"label_counts": {}, "index_type": "FLAT", "images": 9, "next_id": 9}
    state = snapshot.MilvusSnapshot(Client(), "http://host", "images", 1, record)
    state.images([1])
    monkeypatch.setattr(snapshot, "STALE_SECONDS", -1.0)
    state.images([1])
    assert levels == ["Strong", "Bounded"]


@pytest.mark.slow
def test_an_approximate_index_reports_its_overlap(build, tmp_path, run, photos, monkeypatch, opened):
    fake_model(monkeypatch)
    uri = str(tmp_path / "index.db")
    report = build(uri, photos, checkpoint=run, milvus_index="HNSW M=8 efConstruction=64 ef=64")
    assert "of the 10 nearest images of 24 images" in report.notes[0]
    assert report.record["overlap"]["overlap"] > 0.9
    monkeypatch.setattr(snapshot, "MAX_READ", 23)
    assert "not measured: exact search reads every vector" in build(uri, photos, retrain=True).notes[0]
    build(tmp_path / "folder", photos, checkpoint=run)
    one, other = opened(tmp_path / "folder"), opened(uri)
    query = one.vector(5)
    assert without_numbers(other.search(query, 3)) == without_numbers(one.search(query, 3))
    other.store.close()
    assert build(uri, photos, milvus_index="FLAT").record["overlap"] is None
    for index_type, message in (
        ("HSNW", "unknown Milvus index 'HSNW'"),
        (" ", "unknown Milvus index ''"),
        ("HNSW M=x", "such as nlist=1024"),
        (
            "HNSW efconstruction=9",
            "unknown parameter of the Milvus index HNSW 'efconstruction': did you mean 'efConstr",
        ),
        ("FLAT nlist=9", "unknown parameter of the Milvus index FLAT 'nlist'"),
    ):
        with pytest.raises(InputError, match=message):
            build(uri, photos, milvus_index=index_type)


def test_a_first_run_of_another_index_type_leaves_none_of_it(build, tmp_path, run, photos, monkeypatch, opened):
    uri = str(tmp_path / "index.db")
    with monkeypatch.context() as context:
        context.setattr(update.MilvusUpdate, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(uri, photos, checkpoint=run, milvus_index="HNSW M=8 efConstruction=64 ef=64")
    assert build(uri, photos, checkpoint=run).resumed == 24
    assert schema.built_type(opened(uri).store._client, "hgsl") == "FLAT"


@pytest.mark.slow
def test_the_next_update_builds_the_index_that_an_interrupted_one_has_dropped(
    build, run, photos, monkeypatch, uri, opened
):
    from pymilvus import MilvusClient

    build(uri, photos, checkpoint=run)
    address, collection = split_address(uri)
    for index_type, expected in ((None, "FLAT"), ("HNSW M=8 efConstruction=64 ef=64", "HNSW")):
        with monkeypatch.context() as context:
            context.setattr(MilvusClient, "create_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                build(uri, photos, milvus_index="HNSW M=8 efConstruction=64 ef=64")
        if is_server(address):  # a local file is searched without an index
            with pytest.raises(InputError, match=r"has no vector index: .* run hgsl-search index again"):
                opened(uri)
        assert build(uri, photos, milvus_index=index_type).images == 24
        index = opened(uri)
        assert schema.built_type(index.store._client, collection) == expected
        assert len(index.search(index.vector(0), 24)[0]) == 24
        index.store.close()


def test_a_first_run_that_ended_between_a_collection_and_its_index_is_continued(
    build, run, photos, monkeypatch, uri, opened
):
    from pymilvus import MilvusClient

    create_index, calls = MilvusClient.create_index, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) in (1, 3):  # of the states; then, after another attempt has built that one, of the images
            raise KeyboardInterrupt
        return create_index(*arguments, **options)

    monkeypatch.setattr(MilvusClient, "create_index", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build(uri, photos, checkpoint=run)
    assert build(uri, photos, checkpoint=run, milvus_index="HNSW M=8 efConstruction=64 ef=64").images == 24
    _, collection = split_address(uri)
    assert schema.built_type(opened(uri).store._client, collection) == "HNSW"


def test_a_reader_names_the_command_that_builds_a_missing_index(monkeypatch):
    from pymilvus import MilvusException

    class Client:
        def __init__(self, index):
            self.index = index

        def has_collection(self, name):
            return True

        def load_collection(self, name):
            raise MilvusException(message="index not found")

        def describe_index(self, *_):
            return self.index

    closed = []
    monkeypatch.setattr(store, "disconnect", lambda *_: closed.append(1))
    for index, message in ((None, "http://host#photos has no vector index"), ({"index_type": "FLAT"}, "not found")):
        monkeypatch.setattr(store, "connect", lambda _, index=index: Client(index))
        with pytest.raises(InputError, match=message):
            open_store("http://host#photos").open()
    assert closed == [1, 1]


def test_a_parameter_of_the_search_needs_no_other_index(build, tmp_path, run, photos, monkeypatch):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run, milvus_index="HNSW M=8 efConstruction=64 ef=64")
    monkeypatch.setattr(schema, "replace_index", lambda *_: pytest.fail("built another index"))
    record = build(uri, photos, milvus_index="HNSW M=8 efConstruction=64 ef=32").record
    assert record["index_type"] == "HNSW M=8 efConstruction=64 ef=32"
    with pytest.raises(pytest.fail.Exception):
        build(uri, photos, milvus_index="HNSW M=9 efConstruction=64 ef=32")


def test_a_stranger_for_which_an_approximate_index_finds_nothing_is_not_accepted():
    entities = [{"id": number, "path": f"{number}.jpg", "label": label} for number, label in enumerate("aab")]

    class Client:
        def query(self, *_, **__):
            return [{**entity, "vector": [1.0, 0.0]} for entity in entities]

        def search(self, *_, data, filter, **__):
            others = [] if '"a"' in filter else entities[:1]
            return [[{"distance": 1.0, "entity": {**entity, "vector": [1.0, 0.0]}} for entity in others] for _ in data]

    record = {"label_counts": {}, "index_type": "HNSW", "images": 3, "next_id": 3}
    state = snapshot.MilvusSnapshot(Client(), "http://host", "images", 1, record)
    scores, labels = state.nearest_of_other_label([0, 1, 2])
    assert (scores.tolist(), labels) == ([-1.0, -1.0, 1.0], ["a", "a", "a"])


def test_ties_at_the_end_of_the_candidates_are_ordered_by_path(build, tmp_path, run, photos, opened):
    for number in range(40):
        shutil.copy(photos / "kind_00/00.jpg", photos / f"kind_03/copy{(7 * number) % 40:02}.jpg")
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    [hits] = opened(uri).search(photos / "kind_00/00.jpg", 3)
    assert [hit.path for hit in hits] == ["kind_00/00.jpg", "kind_03/copy00.jpg", "kind_03/copy01.jpg"]


def test_one_process_writes_at_a_time(build, tmp_path, run, photos, monkeypatch):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    vectors = Encoder.vectors

    def second(*arguments):
        monkeypatch.setattr(Encoder, "vectors", vectors)
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing to the index"):
            build(uri, photos)
        return vectors(*arguments)

    Image.new("RGB", (60, 50), "red").save(photos / "new.jpg")
    monkeypatch.setattr(Encoder, "vectors", second)
    assert build(uri, photos).images == 25


@pytest.mark.parametrize("is_ended", [True, False])
def test_the_lease_of_a_killed_process_is_taken(build, tmp_path, run, photos, opened, is_ended):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    ended = subprocess.Popen(["true"])
    ended.wait()
    process = ended.pid if is_ended else os.getpid()  # another one has its number, as in a restarted container
    lease = {"host": socket.gethostname(), "process": process, "started": "1", "token": "", "expires": time.time() + 60}
    client = opened(uri).store._client
    client.upsert("hgsl_states", [states._row(states.LEASE, states.LEASE, 1, json.dumps(lease))])
    (photos / "kind_00/00.jpg").unlink()
    assert build(uri, photos).images == 23
    lease["host"] = "another"
    client.upsert("hgsl_states", [states._row(states.LEASE, states.LEASE, 1, json.dumps(lease))])
    with pytest.raises(InputError, match=f"process {process} on another is writing"):
        build(uri, photos)


def test_a_process_that_lost_its_lease_writes_nothing(build, tmp_path, run, photos, monkeypatch, opened):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    client = opened(uri).store._client
    other = [states._row(states.LEASE, states.LEASE, 1, json.dumps({"token": "of another", "expires": 0}))]
    vectors = Encoder.vectors
    monkeypatch.setattr(Encoder, "vectors", lambda *words: client.upsert("hgsl_states", other) and vectors(*words))
    Image.new("RGB", (60, 50), "red").save(photos / "new.jpg")
    with pytest.raises(InputError, match="another process has begun to write"):
        build(uri, photos)
    [answer] = client.query("hgsl", filter="id >= 0", output_fields=["count(*)"])
    assert answer["count(*)"] == 24
    [row] = client.query("hgsl_states", filter=f"id == {states.LEASE}", output_fields=["text"])
    assert json.loads(row["text"])["token"] == "of another"


def test_a_lease_is_extended_until_it_is_released(build, tmp_path, run, photos, monkeypatch, opened):
    uri = str(tmp_path / "index.db")
    build(uri, photos, checkpoint=run)
    monkeypatch.setattr(states, "LEASE_SECONDS", 1.0)
    lease = states.Lease(opened(uri).store._client, "hgsl")
    first = lease._read()["expires"]
    while lease._read()["expires"] == first:
        pass
    lease.release()
    assert lease._read() == {}
    monkeypatch.setattr(update, "read_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(uri, photos)
    assert lease._read() == {}, "released by an update that ends while it reads"


def test_the_command_writes_to_milvus(tmp_path, run, photos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["index", "--checkpoint", str(run), "--images", str(photos), "--device", "cpu", "--workers", "0"]
    assert search.main([*words, "--store", "milvus", "--uri", "index.db#photos"]) == 0
    assert "index index.db#photos: 24 images, 16 dimensions, FLAT" in capsys.readouterr().out
    query = ["query", "--index", "index.db#photos", str(photos / "kind_00/00.jpg"), "-k", "2", "--device", "cpu"]
    assert search.main(query) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "1.0000", "kind_00", "kind_00/00.jpg"]
    assert "no index in index.db#other" in fails(
        search.main, ["query", "--index", "index.db#other", *query[3:]], capsys
    )
    Path("text.db").write_text("text")
    assert "no index in nowhere.db" in fails(search.main, ["query", "--index", "nowhere.db", *query[3:]], capsys)
    for flags, message in (
        ([], "name the index: --out FOLDER"),
        (["--out", "idx", "--uri", "index.db"], "name the index"),
        (["--store", "folder", "--uri", "index.db"], "use --store milvus"),
        (["--store", "milvus", "--out", "idx"], "give the address of Milvus with --uri"),
        (["--uri", "somewhere"], "must be a local file that ends with .db"),
        (["--uri", "index.db#9"], "must consist of letters, digits"),
        (["--uri", "text.db"], "text.db is not a file of milvus-lite"),
        (["--uri", "text.db/index.db"], "Not a directory"),
    ):
        assert message in fails(search.main, [*words, *flags], capsys)


def test_an_unreachable_server_is_one_line(monkeypatch):
    monkeypatch.setattr("hgsl.search.milvus.client.SECONDS", 0.2)
    for user in ("", "me:passw0rd@"):
        with pytest.raises(InputError, match=r"Milvus at http://127\.0\.0\.1:9: .*is the server running") as error:
            SearchIndex.open(f"http://{user}127.0.0.1:9#photos")
        assert "passw0rd" not in str(error.value)
    assert open_store("http://me:passw0rd@host#photos").address == "http://host#photos"


def test_addresses():
    assert split_address("index.db") == ("index.db", "hgsl")
    assert split_address("http://host:19530#roses") == ("http://host:19530", "roses")
