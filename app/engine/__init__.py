"""Generation: continuous batching of variants on token ids. Knows no HTTP and no settings."""
