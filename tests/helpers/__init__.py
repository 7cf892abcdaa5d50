"""Shared by several test modules: test beds, faulty peers and real processes."""
