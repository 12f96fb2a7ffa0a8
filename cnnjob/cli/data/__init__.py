"""Commands for datasets and jobs: prepare, show, new."""
