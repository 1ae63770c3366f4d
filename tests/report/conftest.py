"""Fixtures of the report's tests."""

from __future__ import annotations

import pytest
from poisoned_scan import Images, Scan, make_scan


@pytest.fixture(scope="session")
def scan() -> Scan:
    return make_scan(600, unreadable=(5, 17))


@pytest.fixture(scope="session")
def images() -> Images:
    return Images()
