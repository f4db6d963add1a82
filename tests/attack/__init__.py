"""A corpus of hostile inputs, all made by code, and what sends them to a running service.

``python -m tests.attack`` runs all of it; ``test_attack`` a short form. Unit tests take single inputs from here.
"""
