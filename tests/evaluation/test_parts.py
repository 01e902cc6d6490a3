"""Parts of embeddings: division of a list, names by content, the file and its damage."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation.parts.part import (
    MIN_IMAGES,
    PartContent,
    divide,
    list_parts,
    read_columns,
    read_part,
    read_record,
    remove_parts,
    write_part,
)

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'hgsl[parquet]'")


def listing(count):
    return {"path": [f"{number:04}.jpg" for number in range(count)], "size": list(range(count))}


def test_parts_consist_of_whole_batches():
    for count, batch_size in ((1, 64), (300, 64), (1000, 7), (10, 1000), (100_000, 64)):
        parts = divide(listing(count), batch_size, "model")
        assert [path for part in parts for path in part.columns["path"]] == listing(count)["path"]
        assert all(len(part) % batch_size == 0 for part in parts[:-1])
        assert len({len(part) for part in parts[:-1]}) <= 1
        assert len(parts[0]) <= max(MIN_IMAGES, batch_size, count // 256)
    assert len(divide(listing(100_000), 64, "model")) == 261  # parts of 384 images


def test_the_name_of_a_part_depends_on_all_that_determines_its_vectors():
    [part] = divide(listing(5), 64, "model")
    assert divide(listing(5), 64, "model")[0].name == part.name
    others = [
        divide(listing(5), 64, "other"),
        divide(listing(5), 32, "model"),
        divide(listing(4), 64, "model"),
        divide({**listing(5), "size": [0, 1, 2, 3, 5]}, 64, "model"),
    ]
    assert len({part.name, *(other[0].name for other in others)}) == 5


@pytest.fixture
def written(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    columns = {"path": [f"{number}ä.jpg" for number in range(50)], "size": list(range(50))}
    path = divide(columns, 64, "model")[0].path(tmp_path)
    write_part(path, PartContent(columns, vectors, [["x.jpg", 1, "no image"]]), {"model": "m", "root": "/photos"})
    return path, columns, vectors


def test_a_part_is_read_as_it_was_written(written, tmp_path):
    path, columns, vectors = written
    record, values, stored = read_part(path, ("path", "size"))
    assert values == columns
    assert stored.tobytes() == vectors.tobytes()
    assert (record["model"], record["root"], record["dimensions"]) == ("m", "/photos", 8)
    assert read_record(path) == record
    assert record["broken"] == [["x.jpg", 1, "no image"]]
    assert read_columns(path, ["size"]) == (record, {"size": columns["size"]})
    assert list_parts(tmp_path) == [path]
    with pytest.raises(InputError, match="no column 'row'"):
        read_columns(path, ["row"])
    (tmp_path / "more.txt").touch()
    remove_parts(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["more.txt"]


def test_a_part_without_a_vector(tmp_path):
    content = PartContent({"path": [], "size": []}, np.empty((0, 8), np.float32), [["x.jpg", 1, "no image"]])
    write_part(tmp_path / "part-0.parquet", content, {"model": "m"})
    _, columns, vectors = read_part(tmp_path / "part-0.parquet", ("path", "size"))
    assert columns == {"path": [], "size": []}
    assert len(vectors) == 0


def test_any_damage_is_an_error_that_names_the_file(written, tmp_path):
    path, columns, vectors = written
    content = path.read_bytes()
    damaged = tmp_path / "part-damaged.parquet"
    detected = 0
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 0x10
        damaged.write_bytes(changed)
        try:
            record, values, stored = read_part(damaged, ("path", "size"))
        except InputError as error:
            detected += str(damaged) in str(error)
        else:  # bytes that no reader uses, such as statistics
            assert (values, record["model"]) == (columns, "m")
            assert stored.tobytes() == vectors.tobytes()
    assert detected > len(content) / 7 / 2
    for size in (0, 3, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:size])
        with pytest.raises(InputError, match="is damaged"):
            read_part(damaged, ("path",))
