"""Attacks as pure functions: (model, images, labels, budget) → result."""
