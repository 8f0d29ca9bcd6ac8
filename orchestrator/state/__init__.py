"""The life of every job, in Redis: one store that writes, one reader, and what talks to Redis for them."""
