"""The modules of the method, in torch. Knows no files, no losses and no training loop."""
