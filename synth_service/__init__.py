"""The generator service: HTTP API, synthesis worker and command line."""
