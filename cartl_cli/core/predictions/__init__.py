"""What a finished run's model answers for images of any folder."""
