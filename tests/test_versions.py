"""The oldest and the newest Python that are supported, each with the newest dependencies."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("python", ["python3.10", "python3.13"])
def test_the_core_works_under_another_python(python: str) -> None:
    found = shutil.which(python)  # a version manager's stand-in may be there, and not work
    if found is None or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"needs {python}")
    done = subprocess.run(
        [str(ROOT / ".ci" / "core"), python, "highest"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
