"""Index construction: list the images of a folder, embed those that are new or changed, write the next state."""
