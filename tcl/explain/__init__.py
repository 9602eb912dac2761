"""Where a model looks: Grad-CAM, and its pictures. Knows no training."""
