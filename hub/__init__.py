"""The deployable project: settings, URLs, the ASGI application, `runhub`, and the hub's own activity."""
