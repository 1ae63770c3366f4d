"""Fixtures of the configuration's tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write
