"""Embeddings in Parquet parts, which several machines compute with Ray and from which an index is filled."""
