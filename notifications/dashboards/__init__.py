"""Live dashboards: the machine and the hub itself, sampled each second."""
