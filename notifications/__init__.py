"""Live events for Django: topics, logs, fan-out to browsers, and the uses built on them."""

__version__ = "0.1.0"
