"""The `arborist` command: the one package that may import everything."""
