"""Reports on finished and unfinished runs: tables, figures and an HTML page."""
