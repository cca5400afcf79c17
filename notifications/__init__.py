"""Live events for Django: topics, logs, fan-out to browsers, and the uses built on them."""

from __future__ import annotations

__version__ = "0.1.0"
