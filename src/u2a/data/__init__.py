"""Rows: from files, folders, the Hub or Python to tokens with exact response masks; checked and split."""
