"""The command line: options and help. Imports no torch."""
