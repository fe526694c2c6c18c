"""What this plugin adds."""

from __future__ import annotations
