"""Network architectures, their registry and the loading of checkpoints.

``registry`` imports no torch by itself, so that the API can refuse an unknown architecture; the modules
that define networks are imported when one is built.
"""
