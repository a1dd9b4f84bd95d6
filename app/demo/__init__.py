"""``nantucket demo``: the whole system on this machine, against a real job that goes bad and a real receiver."""
