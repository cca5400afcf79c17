"""Audit: who did what, when, and from where, in entries that stay as they were written."""
