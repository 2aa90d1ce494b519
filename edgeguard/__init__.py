"""Calibrated, per-category confidence from generative guard models, on your own machine."""
