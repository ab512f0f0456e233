"""The paper's claims, and the choice of guidance and scheduler."""
