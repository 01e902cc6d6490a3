"""The states of an index in Milvus: a collection of records, and the lease of the process that writes.

A record is JSON in as many rows as it needs, inserted by one request; a state whose rows are incomplete does not exist.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.search.milvus.schema import FLAT, METRIC, load_with_index

SUFFIX = "_states"
PART = 60_000  # characters of a record per row
STRIDE = 1_000_000  # row numbers per state
LEASE, LEASE_SECONDS = -1, 60.0  # row number of the lease, and seconds until another process may take it


def open_states(client: Any, collection: str) -> None:
    """Loads the collection of the states, and creates it before if it is missing."""
    if client.has_collection(collection + SUFFIX):
        load_with_index(client, collection + SUFFIX, FLAT)
    else:
        _create_states(client, collection)


def current_state(client: Any, collection: str) -> int:
    """The number of the current state; 0 if there is none."""
    return max(_complete_states(client, collection, []), default=0)


def read_state(client: Any, collection: str) -> tuple[int, dict[str, Any]]:
    """The number and the record of the current state; 0 and nothing if there is none."""
    states = _complete_states(client, collection, ["text"])
    if not states:
        return 0, {}
    number = max(states)
    record: dict[str, Any] = json.loads("".join(row["text"] for row in states[number]))
    return number, record


def write_state(client: Any, collection: str, number: int, record: dict[str, Any]) -> None:
    """Makes a record the current state, and removes those before the previous one."""
    text = json.dumps(record)
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    rows = [_row(number * STRIDE + part, number, len(parts), content) for part, content in enumerate(parts)]
    client.insert(collection + SUFFIX, rows)
    client.delete(collection + SUFFIX, filter=f"state >= 0 and state < {number - 1}")


def _create_states(client: Any, collection: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one in every collection
    for name in ("state", "parts"):
        schema.add_field(name, DataType.INT64)
    schema.add_field("text", DataType.VARCHAR, max_length=65_535)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_name="vector", index_type=FLAT, metric_type=METRIC)
    client.create_collection(collection + SUFFIX, schema=schema, index_params=parameters, consistency_level="Strong")


def _complete_states(client: Any, collection: str, fields: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
    """Number -> rows, in order, of the states whose record is complete."""
    if not client.has_collection(collection + SUFFIX):
        return {}
    rows = client.query(
        collection + SUFFIX,
        filter="state > 0",
        output_fields=["id", "state", "parts", *fields],
        consistency_level="Strong",
    )
    states: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        states[row["state"]].append(row)
    return {number: parts for number, parts in states.items() if len(parts) == parts[0]["parts"]}


def _row(number: int, state: int, parts: int, text: str) -> dict[str, Any]:
    return {"id": number, "vector": [0.0, 0.0], "state": state, "parts": parts, "text": text}


class Lease:
    """The right of this process to write to an index; it expires if this process does not extend it.

    Args:
        client: The connection.
        collection: Of the images.

    Raises:
        InputError: Another process has it.
    """

    def __init__(self, client: Any, collection: str) -> None:
        self._client, self._name = client, collection + SUFFIX
        self._holder = {
            **{"host": socket.gethostname(), "process": os.getpid(), "started": _start_time(os.getpid())},
            "token": secrets.token_hex(8),
        }
        other = self._read()
        if other and other["expires"] > time.time() and not _is_dead(other):
            raise InputError(f"process {other['process']} on {other['host']} is writing to the index: wait until it "
                             "has finished")  # fmt: skip
        self._write()
        self.check()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Checks that no other process has taken the lease.

        Raises:
            InputError: One has.
        """
        if self._read().get("token") != self._holder["token"]:
            raise InputError("another process has begun to write to the index: run the command again")

    def release(self) -> None:
        """Gives the lease back, if no other process has taken it."""
        self._ended.set()
        self._thread.join(LEASE_SECONDS)
        if self._read().get("token") == self._holder["token"]:
            self._client.delete(self._name, ids=[LEASE])

    def _keep(self) -> None:
        """Extends the lease until it is released or lost, however long a step of the update takes."""
        while not self._ended.wait(LEASE_SECONDS / 4):
            try:
                self.check()
                self._write()
            except InputError:
                return
            except Exception:  # of the network: tried again, and the update fails by itself
                continue

    def _write(self) -> None:
        text = json.dumps({**self._holder, "expires": time.time() + LEASE_SECONDS})
        self._client.upsert(self._name, [_row(LEASE, LEASE, 1, text)])

    def _read(self) -> dict[str, Any]:
        rows = self._client.query(
            self._name, filter=f"id == {LEASE}", output_fields=["text"], consistency_level="Strong"
        )
        lease: dict[str, Any] = json.loads(rows[0]["text"]) if rows else {}
        return lease


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    is_here = holder["host"] == socket.gethostname()
    return is_here and holder["started"] != _start_time(holder["process"])


def _start_time(process: int) -> str | None:
    """When a process was started, which tells it from a later one of the same number; None if it does not run."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc").is_dir() else ""  # without /proc, a lease only expires
    return None if state == "Z" else fields[18]  # a zombie has ended
