"""What is measured inside a train step: pure functions from pytrees to small arrays with a leading layer axis."""
