"""Other people's checkpoints: read without running anything, unwrapped, matched to a network."""
