"""Benchmarks of fooproxy side by side with other proxies: ``python -m benchmarks --help``."""
