"""vLLM as an engine that this service runs: its processes, their life, and what they serve."""
