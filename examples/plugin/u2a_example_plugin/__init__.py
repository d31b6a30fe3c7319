"""Parts of one's own for u2a, a file each."""
