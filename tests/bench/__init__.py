"""What is measured against the reference generator, against transformers, and against this machine."""
