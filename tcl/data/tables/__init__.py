"""Rows of CSV, JSON and Parquet files, as they stream in. Knows no images and no meaning of columns."""
