"""The Parquet files that hold the annotations."""
