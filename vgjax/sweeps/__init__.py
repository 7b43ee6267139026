"""Many runs from one grid: planned, trained in slices, mapped, and made again."""
