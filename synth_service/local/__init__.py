"""The whole service on one machine: processes that are started, watched and stopped together."""
