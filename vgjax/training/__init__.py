"""One run: the train step, chunks of steps, the host's loop, and the run's folder."""
