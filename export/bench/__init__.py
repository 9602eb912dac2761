"""Every way in which this machine can run a model, measured. Knows no command line."""
