"""Make a language model smaller by deleting its redundant blocks. Knows nothing of the web."""
