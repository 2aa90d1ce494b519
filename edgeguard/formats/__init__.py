"""Readers of model files and what lies beside them, without trusting any of them."""
