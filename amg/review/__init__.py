"""Looking at what a job made."""
