"""Which example comes next, where it lies, and batches of them ahead of time."""
