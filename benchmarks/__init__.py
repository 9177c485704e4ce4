"""Measurements: each module writes one JSON under results/, and tables.py makes tables of them."""
