"""Source and target models: one loop, and what a training minimises."""
