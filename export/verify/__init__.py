"""Written graphs and engines compared with the model. Changes neither."""
