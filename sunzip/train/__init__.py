"""Training: examples, the loop, and the export of what it yields."""
