"""What happens behind the scenes: usage from Redis to PostgreSQL, changes of keys from PostgreSQL to Redis."""
