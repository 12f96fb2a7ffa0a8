"""Job files: schema, lookup by name, overrides and sweeps; the manifest in a run's folder."""
