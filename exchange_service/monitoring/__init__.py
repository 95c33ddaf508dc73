"""What a monitoring system imports of this service: rules of alerts for Prometheus, and a dashboard for Grafana."""
