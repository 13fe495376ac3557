"""A forward of a batch: its kernels, its flat layers or the model itself, recorded or not."""
