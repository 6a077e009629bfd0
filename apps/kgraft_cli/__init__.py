"""The kgraft command."""
