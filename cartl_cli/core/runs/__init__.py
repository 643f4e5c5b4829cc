"""Run folders: what is written, how it is checked, how it is found again."""
