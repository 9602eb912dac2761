"""The losses of the method, its teacher and queues, and the objective of each task. Knows no files and no loop."""
