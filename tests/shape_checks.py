"""Checks types and shapes at run time; pyproject.toml names the packages that it is for."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int may be given where a float is asked for, as in PEP 484.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
