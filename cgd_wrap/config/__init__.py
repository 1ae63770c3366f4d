"""Every number of the defence, in one frozen value."""

from __future__ import annotations

from cgd_wrap.config.settings import CGDConfig

__all__ = ["CGDConfig"]
