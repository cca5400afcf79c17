"""A site of its own that has the hub's apps."""
