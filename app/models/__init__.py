"""Models that the service knows: the catalog, loaded weights, models of other servers."""
