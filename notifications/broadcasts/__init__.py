"""Broadcasts: what administrators tell everyone, or an audience, as a banner on every page."""
