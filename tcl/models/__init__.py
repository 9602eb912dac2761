"""The modules of the method, in torch. Knows no files, no loss and no training."""
