"""A shim for tools that ask for a setup.py; the metadata are in pyproject.toml."""

from setuptools import setup

setup()
