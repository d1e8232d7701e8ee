"""What one sees of a server: metrics, health, who calls, traces."""
