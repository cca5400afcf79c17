"""The personal topic of each user: what reaches all their tabs and devices."""
