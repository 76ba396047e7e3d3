"""Environments: N of them, stepped together, behind one interface (`base`); a name becomes one in `registry`."""
