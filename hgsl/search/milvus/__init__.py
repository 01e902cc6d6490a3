"""An index in Milvus, through pymilvus: a local file, a server or a cluster."""
