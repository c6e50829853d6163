"""What one worker does to one batch. Knows no cluster, no tracker, no clock, no environment."""
