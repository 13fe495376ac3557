"""The search: which blocks to remove, scored exactly, in stages, streamed or on several GPUs."""
