"""Steps of a few tokens on a CPU, compiled for the processor that runs them."""
