"""Graphs, written layer by layer, and their other precisions. Knows no bundle."""
