"""Read image files from a folder or an archive, with labels from folder names or from a table."""
