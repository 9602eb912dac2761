"""Records as labelled samples: statements, questions, regions, classes. Knows no model that learns them."""
