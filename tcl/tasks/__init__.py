"""What is trained: each task's data, model and objective, put together for the trainer. Knows no command line."""
