"""An attack as a run: what is aimed at, what stands, how far that can be trusted."""
