"""Who gets it now: the switchboard, sessions, wire protocols, presence and identity."""
