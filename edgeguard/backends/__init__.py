"""Adapters to model runtimes. Each imports its runtime; nobody imports an adapter but `open_backend`."""
