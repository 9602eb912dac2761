"""`report.html` of a run. Knows its records, not the training that writes them."""
