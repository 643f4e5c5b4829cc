"""Grids of runs: what a spec asks for, and what carries it out."""
