"""Reproductions: one file for each source document or paper; `python -m experiments [NAME …]` runs them."""
