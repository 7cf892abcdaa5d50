"""Fuzzing guided by coverage: ``python -m tests.fuzz TARGET --seconds N``; see CONTRIBUTING.rst."""
