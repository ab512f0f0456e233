"""Data sets (prepared rows, UBC Fashion, procedural figures) and training samples made from them."""
