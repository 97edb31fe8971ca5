"""What only a GPU can show. `make test-gpu` runs it with the Python that has PyTorch for that GPU."""
