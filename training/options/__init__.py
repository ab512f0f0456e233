"""Option dataclasses and the command-line parser."""
