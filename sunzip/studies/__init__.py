"""Studies: what models and archives are good for beyond storing frames."""
