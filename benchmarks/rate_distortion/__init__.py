"""Bytes for error: sunzip beside everything that a user could pick instead, on the same frames."""
