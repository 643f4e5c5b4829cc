"""``cartl export``: a trained network as files that are used without cartl."""
