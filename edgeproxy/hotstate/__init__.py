"""Redis: what a request may touch, and nothing that has to outlive it."""
