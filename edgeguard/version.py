"""The version, where what stands below the package's own names may read it."""

__version__ = "0.1.0"
