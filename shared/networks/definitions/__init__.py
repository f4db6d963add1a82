"""The networks that jobs may name, a family a module."""
