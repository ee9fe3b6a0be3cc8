"""Looking at mechanisms and models from outside."""
