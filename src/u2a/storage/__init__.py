"""Files: written whole, kept inside their folder, read back safely; and what a disk says when it cannot."""
