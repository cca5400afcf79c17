"""Chat: rooms that are topics, and nothing else."""
