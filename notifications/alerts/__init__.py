"""Alerts: what monitoring systems and code report as wrong, and who looks after it."""
