"""Texts from packages: those that come with the product, and others to measure on."""
