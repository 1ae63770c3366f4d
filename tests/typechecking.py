"""The type checker that the tests put on every function of the package."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# As for mypy, an int is welcome where a float is expected.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
