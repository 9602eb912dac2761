"""The job that turns inputs into vectors on disk, and goes on where it was killed. Knows encoders by protocol."""
