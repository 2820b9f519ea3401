"""What a run reports: metrics as JSON lines, a plot of the loss, a progress bar."""
