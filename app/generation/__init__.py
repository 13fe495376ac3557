"""Generation: from a request in text to its output, by the engine or by another server."""
