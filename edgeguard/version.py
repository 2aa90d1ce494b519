"""Which version of edgeguard this is."""

__version__ = "0.1.0"
