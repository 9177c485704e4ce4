"""Entropy coding: `tables` holds integer probabilities, `coder` turns symbols into bytes and back."""
