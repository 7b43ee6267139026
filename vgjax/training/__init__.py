"""One run: the train step, chunks of steps, the host's loop, and what it leaves on disk."""
