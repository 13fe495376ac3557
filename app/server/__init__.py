"""The processes that listen: the API alone, or everything on one machine."""
