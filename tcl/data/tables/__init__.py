"""Rows of CSV, JSON and Parquet files, as they stream in, and the usual names of columns. Opens no images."""
