"""An index in a folder, searched by FAISS: its layout, readers and writer."""
