"""PostgreSQL: what outlives Redis. Keys, usage, and the changes that still have to be published. No content, ever."""
