"""The command `vgjax`: a file for each subcommand, and what they share."""
