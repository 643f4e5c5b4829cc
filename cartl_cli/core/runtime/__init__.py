"""What a run stands on: devices, processes, signals, randomness, memory."""
