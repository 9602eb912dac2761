"""The loop, the step, and what surrounds them: optimizer, checkpoints, logs, health. Knows tasks by protocol."""
