"""All that wants a GPU to be measured, in one command of a few minutes that needs no network."""
