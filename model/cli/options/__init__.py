"""Options of commands: shared ones, those of sampling, of training, and of a run."""
