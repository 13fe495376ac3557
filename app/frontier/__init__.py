"""`sleb frontier`: int8, the published depths and both together, by speed and quality."""
