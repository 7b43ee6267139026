"""Reproductions: one file per source document or paper; `python -m experiments [NAME …]` runs them."""
