"""How a server process runs: the WebSocket class, its life from start to drain, the Unix socket of the owner."""
