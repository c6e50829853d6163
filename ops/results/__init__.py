"""What scores become: calibration, maps, the score table, metrics and plots."""
