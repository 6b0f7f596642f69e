"""Running a real ipcluster."""
