"""What a night tells other systems when it ends: messages, a ping, figures for Prometheus."""
