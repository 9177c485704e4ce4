"""Networks: float transforms in torch, and exact integer networks in NumPy."""
