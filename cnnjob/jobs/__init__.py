"""Job files (schema, lookup by name, overrides and sweeps) and the manifest in a run folder."""
