"""This machine and this process: devices, memory, worker processes, signals, seeds. Knows no model and no data."""
