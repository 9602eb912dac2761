"""The processes of a run: who they are, how they start, what each does of a task. Knows no data and no model."""
