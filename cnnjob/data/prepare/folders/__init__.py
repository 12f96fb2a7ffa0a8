"""Read image files: from a folder or an archive, with labels from the names of folders or from a table."""
