"""``nantucket follow``: training that nobody can edit, read from what it writes anyway."""
