"""The Hub: repositories, cards and publishing."""
