"""Keys and values of running sequences in pages, and which pages hold what. One room of many."""
