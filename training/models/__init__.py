"""The models that train, and what they are made from."""
