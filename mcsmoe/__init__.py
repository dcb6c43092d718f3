"""Make a sparse mixture-of-experts model small: merge its experts, then compress them (arXiv 2310.01334)."""
