"""Kubernetes as the world that runs targets: an existing Deployment, scaled by its scale subresource."""
