"""The store of an index, chosen by its address; no store is imported before it is needed."""

import re
from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.search.stores.protocol import Store

COLLECTION = "hgsl"  # where the address of a Milvus index names none
LOCAL_SUFFIX = ".db"


def is_milvus(address: str | Path) -> bool:
    """Whether an address is that of an index in Milvus: a URI, or a local file that ends with ``.db``."""
    uri = str(address).partition("#")[0]
    return "://" in uri or uri.startswith("unix:") or uri.endswith(LOCAL_SUFFIX)


def split_address(address: str) -> tuple[str, str]:
    """Splits ``URI#COLLECTION`` into URI and collection.

    Raises:
        InputError: The collection is no name that Milvus accepts.
    """
    uri, _, collection = address.partition("#")
    if collection and not re.fullmatch(r"[A-Za-z_]\w{0,200}", collection, re.ASCII):
        raise InputError(
            f"{address!r}: the collection {collection!r} must consist of letters, digits and underscores, and not "
            "begin with a digit"
        )
    return uri, collection or COLLECTION


def open_store(address: str | Path) -> Store:
    """Returns the store at an address: a folder, or ``URI#COLLECTION`` of Milvus.

    Raises:
        InputError: The address is malformed.
    """
    if is_milvus(address):
        from hgsl.search.milvus.store import MilvusStore

        return MilvusStore(*split_address(str(address)), str(address))
    from hgsl.search.folder.store import FolderStore

    return FolderStore(address)
