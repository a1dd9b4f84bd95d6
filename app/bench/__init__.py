"""`nantucket bench`: a measurement for every figure that the documentation quotes."""
