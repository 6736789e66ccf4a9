"""The version, which every checkpoint carries."""

__version__ = "0.2.0"
