"""Planning a job, and running it shard by shard."""
