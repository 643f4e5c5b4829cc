"""The networks, as a stem and a list of blocks."""
