"""The HTTP API: publish, read and count from other services, with keys that are limited to topics."""
