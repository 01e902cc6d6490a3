"""The index folder on disk: its layout, readers and writers."""
